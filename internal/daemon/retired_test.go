package daemon

import (
	"context"
	"errors"
	"testing"

	"github.com/flocker-io/flocker/internal/fence"
)

// holder is a Fencer that is asked to hold, and may fail to.
type holder struct {
	Fencer
	status fence.Status
	fail   error
	held   int
}

func (h *holder) Status(context.Context) (fence.Status, error) { return h.status, nil }

func (h *holder) Hold(_ context.Context, _, reason string) (fence.Status, error) {
	h.held++
	h.status.Operator, h.status.Reason = true, reason
	return h.status, h.fail
}

func (h *holder) Lift(context.Context) (fence.Status, error) {
	h.status.Operator = false
	return h.status, nil
}

// Writers count as stopped only when the fencer has said so. What we have begun is
// completed and lifted; what an operator holds stays held.
func TestStopOnce(t *testing.T) {
	slow := errors.New("still fencing")
	h := &holder{fail: slow}
	d := New(Parts{Fencer: h})
	if err := d.stopOnce(t.Context(), "tank/flocker"); err != slow {
		t.Errorf("the first attempt ends with %v", err)
	}
	h.fail = nil
	if err := d.stopOnce(t.Context(), "tank/flocker"); err != nil || h.held != 2 || h.status.Operator {
		t.Errorf("the second ends with %v after %d, held %t", err, h.held, h.status.Operator)
	}

	h = &holder{status: fence.Status{Operator: true, Reason: "maintenance", State: fence.PhaseFencing}}
	d = New(Parts{Fencer: h})
	if err := d.stopOnce(t.Context(), "tank/flocker"); err == nil {
		t.Error("what an operator has begun to stop counts as stopped")
	}
	h.status.State = fence.PhaseFenced
	if err := d.stopOnce(t.Context(), "tank/flocker"); err != nil || h.held != 0 || !h.status.Operator {
		t.Errorf("of an operator's it ends with %v after %d, held %t", err, h.held, h.status.Operator)
	}
	if err := New(Parts{}).stopOnce(t.Context(), "tank/flocker"); err == nil {
		t.Error("without a fencer writers count as stopped")
	}
}
