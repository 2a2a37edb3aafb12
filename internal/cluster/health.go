package cluster

import "time"

// Health is what is thought of a node's life. It is for people and for the choice of
// voters; nobody's right to write depends on it.
type Health string

// The health words.
const (
	Alive   Health = "alive"
	Suspect Health = "suspect"
	Dead    Health = "dead"
	Unknown Health = "unknown"
)

// Ages of a report that change what is thought of its node: three missed heartbeats,
// and the time after which its volumes may be promoted elsewhere.
const (
	freshReport = 6 * time.Second
	staleReport = 20 * time.Second
)

// HealthOf weighs the age of the last report (reported says whether there was one)
// and what gossip says. A fresh report proves life whatever gossip says; an old one
// proves nothing while gossip still hears the node.
func HealthOf(reported bool, age time.Duration, gossip Health) Health {
	switch {
	case !reported:
		if gossip == Alive {
			return Suspect // heard, but it has not reported yet
		}
		return gossip
	case age <= freshReport:
		return Alive
	case gossip == Dead:
		return Dead
	case age <= staleReport, gossip == Alive:
		return Suspect
	}
	return Dead
}
