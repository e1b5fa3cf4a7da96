package cli

import (
	"fmt"
	"strconv"
	"strings"
)

// Share reads a share of a whole, such as 1% or 0.01.
func Share(s string) (float64, error) {
	number, percent := strings.CutSuffix(s, "%")
	f, err := strconv.ParseFloat(number, 64)
	if percent {
		f /= 100
	}
	if err != nil || !(f >= 0 && f <= 1) {
		return 0, fmt.Errorf("%q is no share like 1%% or 0.01", s)
	}
	return f, nil
}
