package fence

// The protocol: one JSON value a line, on a unix socket that only root may open. A
// request is answered at once by what is so after it; nothing waits for a step of
// fencing. A request may be repeated.

// request asks for one thing.
type request struct {
	Do         verb     `json:"do"`
	Lease      *Lease   `json:"lease,omitempty"`      // arm
	No         uint64   `json:"no,omitempty"`         // fence
	Reason     string   `json:"reason,omitempty"`     // fence, hold
	Root       string   `json:"root,omitempty"`       // hold
	Containers []string `json:"containers,omitempty"` // forget
}

type verb string

const (
	doArm    verb = "arm"
	doFence  verb = "fence"
	doDisarm verb = "disarm"
	doStatus verb = "status"
	doForget verb = "forget"
	doHold   verb = "hold"
	doLift   verb = "lift"
)

// response is the state after the request. Error says why it was not done.
type response struct {
	Status Status `json:"status"`
	Error  string `json:"error,omitempty"`
}

// maxLine bounds a request or response, with the names of thousands of containers.
const maxLine = 8 << 20
