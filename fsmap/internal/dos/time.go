package dos

import (
	"time"

	"vmkit/fsmap/mapfile"
)

// Time turns a date and a time of day of a directory entry, and hundredths of a second (0 to 199), into a Time as if
// they were UTC. A date of 0, or one that is none, is not known.
func Time(date, clock uint16, cent uint8) mapfile.Time {
	day, month, year := int(date&31), int(date>>5&15), 1980+int(date>>9)
	sec, minute, hour := int(clock&31)*2, int(clock>>5&63), int(clock>>11)
	if day == 0 || month == 0 || month > 12 || sec > 59 || minute > 59 || hour > 23 || cent > 199 {
		return mapfile.Time{}
	}
	t := time.Date(year, time.Month(month), day, hour, minute, sec, int(cent)*10_000_000, time.UTC)
	if t.Day() != day { // the 31st of a shorter month
		return mapfile.Time{}
	}
	return mapfile.Time{Sec: t.Unix(), Nsec: int32(t.Nanosecond()), Known: true}
}
