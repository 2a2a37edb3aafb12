// Package firstseed says with which seed tests of random histories begin. A change is
// judged by the same ones as the change before it, so that what fails is the change's
// doing; FLOCKER_SEEDS is another one. `make histories` sets it to one that nobody has
// seen, and prints it.
package firstseed

import (
	"fmt"
	"os"
	"strconv"
)

// Get tells the first seed; those of other histories follow it.
func Get() uint64 {
	text := os.Getenv("FLOCKER_SEEDS")
	if text == "" {
		return 1
	}
	first, err := strconv.ParseUint(text, 10, 64)
	if err != nil || first == 0 {
		panic(fmt.Sprintf("FLOCKER_SEEDS is %q: it must be the number of the first seed, such as 1", text))
	}
	return first
}
