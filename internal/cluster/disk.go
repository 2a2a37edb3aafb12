package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Disk is where a node keeps what must outlive it: a few small files and the Raft
// log. DirDisk is the real one, MemDisk the one of tests.
type Disk interface {
	// Read a file. The error is fs.ErrNotExist when there is none.
	Read(name string) ([]byte, error)
	// Write a file: afterwards it is durably there, whole; after a crash in between
	// the old content is.
	Write(name string, data []byte) error
	// Remove a file, if it is there.
	Remove(name string) error
	// HasRaft says whether a Raft log was ever opened here.
	HasRaft() (bool, error)
	// DropRaft removes the Raft log and its snapshots. Nobody has them open.
	DropRaft() error
	// OpenRaft gives the stores of the Raft log to one user at a time.
	OpenRaft(hclog.Logger) (*Stores, error)
}

// Stores are Raft's.
type Stores struct {
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	Close     func() error
}

// The files of a node's directory.
const (
	fileNode    = "node.json"    // who this node is; its presence makes the node a member
	fileKey     = "node.key"     // private key
	fileCert    = "node.crt"     // certificate
	fileRoot    = "ca.crt"       // the cluster's root certificate
	fileSeal    = "ca.seal"      // opens the CA's key in the state; only some nodes have it
	fileData    = "data.key"     // seals what only nodes with a pool may read, see datakey.go
	filePending = "pending.json" // identity of a join that has not been answered yet
	fileInit    = "init.json"    // first command of an init, while it is not committed
	fileCache   = "state.json"   // last published state, see cache.go
	fileRetired = "retired.json" // why this node is no member any more, see retired.go
	fileCanary  = "canary"

	fileBolt = "raft.db"
	dirSnaps = "snapshots" // as raft.FileSnapshotStore has it
)

// DirDisk is a directory of the host. It is made with mode 0700, files with 0600.
type DirDisk string

// Read a file.
func (d DirDisk) Read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(d), name))
}

// Write to a temporary file, sync it, rename it, sync the directory.
func (d DirDisk) Write(name string, data []byte) (err error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(string(d), "."+name+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), filepath.Join(string(d), name)); err != nil {
		return err
	}
	return d.sync()
}

// Remove a file.
func (d DirDisk) Remove(name string) error {
	err := os.Remove(filepath.Join(string(d), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.sync()
}

func (d DirDisk) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// HasRaft looks for the log's file.
func (d DirDisk) HasRaft() (bool, error) {
	_, err := os.Stat(filepath.Join(string(d), fileBolt))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// DropRaft removes the log last: HasRaft tells of what is left of it.
func (d DirDisk) DropRaft() error {
	if err := os.RemoveAll(filepath.Join(string(d), dirSnaps)); err != nil {
		return err
	}
	return d.Remove(fileBolt)
}

// OpenRaft opens the bolt store. The free list is not written at each commit: after
// a burst it would be larger than what is committed.
func (d DirDisk) OpenRaft(log hclog.Logger) (*Stores, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(string(d), 0o700); err != nil {
		return nil, err
	}
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path: filepath.Join(string(d), fileBolt),
		BoltOptions: &bbolt.Options{
			NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: 2 * time.Second,
		},
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is in use: another flockd runs with this directory", d)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the Raft log: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(string(d), 2, log)
	if err != nil {
		bolt.Close()
		return nil, fmt.Errorf("opening the Raft snapshots: %w", err)
	}
	return &Stores{Logs: bolt, Stable: bolt, Snapshots: snaps, Close: bolt.Close}, nil
}
