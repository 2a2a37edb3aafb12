// Package sim tries the protocols of the cluster against random faults, in simulated
// time: what decides is the real code of internal/lease, internal/state and
// internal/placement; clocks, network, disks, Raft's promises and the fencer are
// models. There is nothing in it but tests.
//
// A history begins with a seed and is the same each time. Whenever a node could write
// a volume is recorded, and no two nodes may at one instant; nor may what a replica has
// acknowledged be missing where that replica had a say in who is promoted. Mutants,
// each without one of the rules, show that the checker would see a rule broken.
package sim
