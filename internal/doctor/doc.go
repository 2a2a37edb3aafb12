// Package doctor judges what nodes have found out about themselves and about one another: from
// the facts of all nodes it makes findings, each with its weight, the reason why it matters and
// what to do. It is one pure function over values, Examine: it asks nobody, changes nothing
// and knows no clock. internal/daemon collects the facts and internal/api carries them.
package doctor
