package iso9660

import (
	"time"

	"vmkit/fsmap/mapfile"
)

// civil makes a Time of a date, a time of day, hundredths of a second, and the offset of the zone in quarters of an
// hour. A date that is none is not known.
func civil(year, month, day, hour, minute, sec, cent int, zone int8) mapfile.Time {
	if month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || sec > 59 || cent > 99 {
		return mapfile.Time{}
	}
	t := time.Date(year, time.Month(month), day, hour, minute, sec, cent*10_000_000, time.UTC)
	if t.Day() != day {
		return mapfile.Time{}
	}
	return mapfile.Time{Sec: t.Unix() - int64(zone)*15*60, Nsec: int32(t.Nanosecond()), Known: true}
}

// longStamp turns the 17 bytes of a date in digits into a Time.
func longStamp(b []byte) mapfile.Time {
	for _, c := range b[:16] {
		if c < '0' || c > '9' {
			return mapfile.Time{}
		}
	}
	n := func(from, to int) (v int) {
		for _, c := range b[from:to] {
			v = v*10 + int(c-'0')
		}
		return v
	}
	return civil(n(0, 4), n(4, 6), n(6, 8), n(8, 10), n(10, 12), n(12, 14), n(14, 16), int8(b[16]))
}
