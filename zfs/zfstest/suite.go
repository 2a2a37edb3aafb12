package zfstest

import "testing"

// Run checks the System of both sides of what newEnv gives; every test gets an
// environment of its own.
func Run(t *testing.T, newEnv func(t *testing.T) Env) {
	for _, test := range []struct {
		name string
		run  func(*world, Env)
	}{
		{"host", testHost},
		{"new pool", testNewPool},
		{"bad names", testBadNames},
		{"filesystems", testFilesystems},
		{"properties", testProperties},
		{"encrypted", testEncrypted},
		{"mount", testMount},
		{"mount in use", testMountInUse},
		{"mount a snapshot", testMountSnapshot},
		{"refquota", testRefquota},
		{"snapshots", testSnapshots},
		{"snapshots at once", testSnapshotsAtOnce},
		{"snapshots named", testSnapshotsNamed},
		{"take", testTake},
		{"bookmarks", testBookmarks},
		{"holds", testHolds},
		{"destroy snapshots", testDestroySnapshots},
		{"prune", testPrune},
		{"prune many", testPruneMany},
		{"full programs", testFullPrograms},
		{"destroy", testDestroy},
		{"volumes", testVolumes},
		{"clone and promote", testClonePromote},
		{"rename", testRename},
		{"replicate", testReplicate},
		{"odd names", testOddNames},
		{"stream headers", testStreamHeaders},
		{"compound streams", testCompoundStreams},
		{"what arrives", testArrives},
		{"send errors", testSendErrors},
		{"receive errors", testReceiveErrors},
		{"receive twice", testReceiveTwice},
		{"receive again and again", testReceiveAgain},
		{"receive onto snapshots", testReceiveOntoSnapshots},
		{"diverged", testDiverged},
		{"clone stream", testCloneStream},
		{"receive on an origin", testReceiveOnOrigin},
		{"receive without room", testReceiveNoRoom},
		{"damaged streams", testDamaged},
		{"truncated streams", testTruncated},
		{"resume full", testResumeFull},
		{"resume increment", testResumeIncrement},
		{"partial state", testPartialState},
		{"tokens", testTokens},
		{"stalled peers", testStalled},
		{"concurrent streams", testConcurrent},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := newEnv(t)
			test.run(newWorld(t, env), env)
		})
	}
}
