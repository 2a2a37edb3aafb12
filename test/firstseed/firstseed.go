// Package firstseed says with which seed tests of random histories begin. A change is
// judged by the same ones as the change before it, so that what fails is the change's
// doing; with FLOCKER_SEEDS=new, as `make histories` has it, each run tells ones that
// nobody has seen.
package firstseed

import (
	"os"
	"time"
)

// Get tells the first seed; those of other histories follow it.
func Get() uint64 {
	if os.Getenv("FLOCKER_SEEDS") == "new" {
		return uint64(time.Now().UnixNano())
	}
	return 1
}
