package volume

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// sizeUnits are the letters of a unit, each 1024 times the one before: Docker's
// convention, in which 1G, 1GB, 1GiB and 1g are all 2^30 bytes.
const sizeUnits = "kmgtp"

// ParseSize reads a number of bytes: a decimal number, which may have a fraction
// when a unit follows ("1.5G"), then nothing or b for bytes, or k, M, G, T, P in
// either case, alone or followed by B or iB. All units are powers of 1024, as in
// Docker. A fraction of a byte is dropped.
func ParseSize(s string) (int64, error) {
	n, err := parseSize(s)
	if err != nil {
		return 0, fmt.Errorf("size %q: %w", s, err)
	}
	return n, nil
}

// parseSize is ParseSize with errors that do not repeat s.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit := strings.ToLower(s[len(digits):])

	shift := uint(0)
	switch {
	case unit == "", unit == "b":
	default:
		i := strings.IndexByte(sizeUnits, unit[0])
		if rest := unit[1:]; i < 0 || rest != "" && rest != "b" && rest != "ib" {
			return 0, errors.New("not a number with a unit k, M, G, T or P")
		}
		shift = 10 * uint(i+1)
	}

	whole, fraction, dotted := strings.Cut(digits, ".")
	if !isDigits(whole) || dotted && (!isDigits(fraction) || shift == 0) {
		return 0, errors.New("not a size")
	}
	n, err := strconv.ParseUint(whole, 10, 64)
	if err != nil {
		return 0, errors.New("too large")
	}
	hi, bytes := bits.Mul64(n, 1<<shift)
	if hi != 0 {
		return 0, errors.New("too large")
	}
	// Nine digits of a fraction and a unit of 2^50 still fit into 128 bits; further
	// digits could not be typed by accident and are refused rather than rounded.
	if dotted {
		if len(fraction) > 9 {
			return 0, errors.New("more than nine digits after the point")
		}
		f, _ := strconv.ParseUint(fraction, 10, 64)
		scale := uint64(math.Pow10(len(fraction)))
		fhi, flo := bits.Mul64(f, 1<<shift)
		part, _ := bits.Div64(fhi, flo, scale)
		bytes += part // cannot wrap: both are below 2^63, see the check below
	}
	if bytes > math.MaxInt64 {
		return 0, errors.New("too large")
	}
	return int64(bytes), nil
}

// FormatSize writes n so that ParseSize reads exactly n again: in the largest unit
// that divides it, "10GiB", "1536MiB", "1000".
func FormatSize(n int64) string {
	if n <= 0 {
		return strconv.FormatInt(n, 10)
	}
	i := min(bits.TrailingZeros64(uint64(n))/10, len(sizeUnits))
	if i == 0 {
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%d%ciB", n>>(10*i), "KMGTP"[i-1])
}

// RoughSize is a number of bytes to two digits or more, for sentences.
func RoughSize(n int64) string {
	for shift := 40; shift > 0; shift -= 10 {
		if n >= 10<<shift {
			return FormatSize(n >> shift << shift)
		}
	}
	return FormatSize(n)
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
