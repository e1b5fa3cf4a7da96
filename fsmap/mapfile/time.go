package mapfile

import (
	"errors"
	"math"
	"strconv"
	"time"
)

// TimeOf gives the Time of a time.Time; the zero time is not known.
func TimeOf(t time.Time) Time {
	if t.IsZero() {
		return Time{}
	}
	return Time{Sec: t.Unix(), Nsec: int32(t.Nanosecond()), Known: true}
}

// Time gives t as a time.Time in UTC.
func (t Time) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }

// String renders t in RFC 3339, or as an empty string.
func (t Time) String() string {
	if !t.Known {
		return ""
	}
	return string(appendTime(nil, t))
}

const (
	daySeconds = 86400
	eraDays    = 146097 // days in 400 years
	epochDays  = 719468 // from 0000-03-01 to 1970-01-01
)

// appendTime appends t in RFC 3339 in UTC, with nanoseconds where it has any. A year takes four digits or as many as it
// needs, so that every 64-bit second has a text; one before year 0 has a sign.
func appendTime(dst []byte, t Time) []byte {
	sec, ns := t.Sec, int64(t.Nsec)
	if ns >= 1e9 || ns < 0 { // on-disk fields of 30 bits hold up to 1073741823
		carry := ns / 1e9
		if ns %= 1e9; ns < 0 {
			ns, carry = ns+1e9, carry-1
		}
		sec += carry
	}
	day, s := floorDiv(sec, daySeconds)
	era, doe := floorDiv(day+epochDays, eraDays)
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	d, m := doy-(153*mp+2)/5+1, mp+3
	y := era*400 + yoe
	if m > 12 {
		m, y = m-12, y+1
	}
	if y < 0 {
		dst, y = append(dst, '-'), -y
	}
	if y < 10000 {
		dst = append(dst, byte('0'+y/1000), byte('0'+y/100%10), byte('0'+y/10%10), byte('0'+y%10))
	} else {
		dst = strconv.AppendInt(dst, y, 10)
	}
	dst = append(two(append(two(append(dst, '-'), m), '-'), d), 'T')
	dst = two(append(two(append(two(dst, s/3600), ':'), s/60%60), ':'), s%60)
	if ns != 0 {
		v := uint32(ns)
		a, b := v/100000000, v%100000000
		hi, lo := b/10000, b%10000
		dst = append(dst, '.', byte('0'+a))
		dst = two(two(dst, int64(hi/100)), int64(hi%100))
		dst = two(two(dst, int64(lo/100)), int64(lo%100))
	}
	return append(dst, 'Z')
}

// digits are the numbers of two digits.
const digits = "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899"

func two(dst []byte, v int64) []byte { return append(dst, digits[2*v], digits[2*v+1]) }

// floorDiv divides towards minus infinity; d is above 0.
func floorDiv(n, d int64) (q, r int64) {
	if q, r = n/d, n%d; r < 0 {
		q, r = q-1, r+d
	}
	return q, r
}

var errTime = errors.New("time is not RFC 3339 in UTC")

// parseTime is the inverse of appendTime.
func parseTime(b []byte) (Time, error) {
	neg := len(b) > 0 && b[0] == '-'
	if neg {
		b = b[1:]
	}
	n := 0
	for n < len(b) && digit(b[n]) {
		n++
	}
	// -MM-DDTHH:MM:SSZ
	if n < 4 || n > 12 || len(b)-n < 16 || b[n] != '-' || b[n+3] != '-' || b[n+6] != 'T' || b[n+9] != ':' || b[n+12] != ':' {
		return Time{}, errTime
	}
	var y int64
	for _, c := range b[:n] {
		y = y*10 + int64(c-'0')
	}
	if neg {
		y = -y
	}
	b = b[n:]
	var f [5]int64
	for i := range f {
		p, q := b[1+3*i], b[2+3*i]
		if !digit(p) || !digit(q) {
			return Time{}, errTime
		}
		f[i] = int64(p-'0')*10 + int64(q-'0')
	}
	m, d, hh, mm, ss := f[0], f[1], f[2], f[3], f[4]
	var ns int64
	b = b[15:]
	if b[0] == '.' {
		k := 1
		for ; k < len(b)-1 && k <= 9 && digit(b[k]); k++ {
			ns = ns*10 + int64(b[k]-'0')
		}
		if k == 1 {
			return Time{}, errTime
		}
		for i := k; i <= 9; i++ {
			ns *= 10
		}
		b = b[k:]
	}
	if len(b) != 1 || b[0] != 'Z' || m < 1 || m > 12 || d < 1 || d > daysIn(y, m) || hh > 23 || mm > 59 || ss > 59 {
		return Time{}, errTime
	}
	if m <= 2 {
		m, y = m+12, y-1
	}
	era, yoe := floorDiv(y, 400)
	doy := (153*(m-3)+2)/5 + d - 1
	doe := yoe*365 + yoe/4 - yoe/100 + doy
	return joinTime(era*eraDays+doe-epochDays, hh*3600+mm*60+ss, ns)
}

// joinTime refuses what a 64-bit second can't hold.
func joinTime(day, s, ns int64) (Time, error) {
	const last, lastSec = math.MaxInt64 / daySeconds, math.MaxInt64 % daySeconds
	if day > last || day == last && s > lastSec {
		return Time{}, errTime
	}
	if day < 0 { // count back from the day's end, whose product fits
		if day < -last-1 || day == -last-1 && daySeconds-s > lastSec+1 {
			return Time{}, errTime
		}
		return Time{Sec: (day+1)*daySeconds - (daySeconds - s), Nsec: int32(ns), Known: true}, nil
	}
	return Time{Sec: day*daySeconds + s, Nsec: int32(ns), Known: true}, nil
}

func digit(c byte) bool { return c-'0' <= 9 }

func daysIn(y, m int64) int64 {
	switch {
	case m == 2 && y%4 == 0 && (y%100 != 0 || y%400 == 0):
		return 29
	case m == 2:
		return 28
	case m == 4 || m == 6 || m == 9 || m == 11:
		return 30
	}
	return 31
}
