package cluster

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/flocker-io/flocker/internal/volume"
)

// A node that the others do not let in any more learns it from the log or from a refusal,
// and writes it down: its Raft log must not be used again, also after a restart, or nodes
// that were left behind together would go on as a cluster of their own. It goes on
// answering its user, and may join again.

// Why a node is no member any more.
var (
	// ErrRemoved is why Run ends on a node that the operator removed. It may join again as
	// a new node.
	ErrRemoved error = volume.Errorf(volume.CodeRefused, "this node was removed from the cluster").
			WithHint("its copies are untouched; to use the machine again, make a token in the cluster (`flockctl token create`) and run the line that it prints on this node")
	// ErrLeftBehind is why Run ends on a node without which the cluster was recovered. It
	// may join again as the node that it was.
	ErrLeftBehind error = volume.Errorf(volume.CodeRefused, "the cluster was recovered from another node, and this one was left behind").
			WithHint("its copies are untouched; to bring it back with them, make a token in the cluster (`flockctl token create`) and run the line that it prints on this node")
)

// A refusal by these words tells a node what it is: its Raft log may never say so.
const (
	removedWords    = " was removed from the cluster"
	leftBehindWords = " was left behind when the cluster was recovered"
)

// IsRetired says that an error of Open or Run is one of the reasons above.
func IsRetired(err error) bool { return errors.Is(err, ErrRemoved) || errors.Is(err, ErrLeftBehind) }

// retirement is the file retired.json.
type retirement struct {
	Why string `json:"why"`
}

var retirements = map[string]error{"removed": ErrRemoved, "left-behind": ErrLeftBehind}

// retire writes down that this node is no member any more.
func retire(d Disk, why error) error {
	for word, err := range retirements {
		if err == why {
			return writeAll(d, file{fileRetired, retirement{Why: word}})
		}
	}
	return fmt.Errorf("%w is no reason to leave a cluster", why)
}

// loadRetired is why this node is no member any more; why is nil on others.
func loadRetired(d Disk) (why, err error) {
	var r retirement
	err = readJSON(d, fileRetired, &r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if why = retirements[r.Why]; why == nil {
		return nil, fmt.Errorf("%s is damaged", fileRetired)
	}
	return why, nil
}

// forgetLog makes room for the log of another time.
func forgetLog(d Disk) error {
	for _, name := range []string{fileCache, fileInit} {
		if err := d.Remove(name); err != nil {
			return err
		}
	}
	return d.DropRaft()
}
