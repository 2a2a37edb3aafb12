// Package firstseed says with which seed tests of random histories begin, and how many there
// are. A change is judged by the same ones as the change before it, so that what fails is the
// change's doing; FLOCKER_SEEDS is another first one, and FLOCKER_HISTORIES says how many times
// as many there are. `make histories` sets both: many that nobody has seen, the first of which
// it prints.
package firstseed

import (
	"fmt"
	"os"
	"strconv"
)

// Get tells the first seed; those of other histories follow it.
func Get() uint64 { return number("FLOCKER_SEEDS", "the first seed") }

// Times is how many histories there are of a kind of which a change has n to pass.
func Times(n int) int {
	return n * int(number("FLOCKER_HISTORIES", "how many times as many histories there are"))
}

// number reads a variable that is 1 where it is not set.
func number(variable, what string) uint64 {
	text := os.Getenv(variable)
	if text == "" {
		return 1
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		panic(fmt.Sprintf("%s is %q: it must be a number from 1 on, %s", variable, text, what))
	}
	return n
}
