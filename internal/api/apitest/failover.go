package apitest

import (
	"context"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// Lose takes a volume from its primary.
func (f *Fake) Lose(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findVolume(name, false)
	if err != nil {
		return err
	}
	v := &f.volumes[i]
	v.Replicas = append([]api.Replica{{Node: v.Primary, Kind: api.ReplicaLocal, State: volume.LinkConnecting}}, v.Replicas...)
	v.Phase, v.Health, v.Primary = "electing", api.HealthUnavailable, api.NodeRef{}
	v.AsOf, v.Mounted, v.Holders = time.Time{}, false, nil
	v.Reason = "getting another primary: its copies are being asked"
	return nil
}

// FailoverVolume implements api.Backend: a volume whose primary is called lost gets the
// node asked for, or its first replica's, and any other primary is alive.
func (f *Fake) FailoverVolume(ctx context.Context, ref string, req api.FailoverRequest) (api.Volume, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "FailoverVolume", ref, req); err != nil {
		return api.Volume{}, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.Volume{}, err
	}
	v := &f.volumes[i]
	if v.Phase != "electing" {
		return api.Volume{}, volume.Errorf(volume.CodeRefused, "volume %q: its primary %s is alive", v.Name, v.Primary)
	}
	for j, r := range v.Replicas {
		if req.To == "" || req.To == r.Node.Name {
			v.Primary, v.Phase, v.Health, v.Reason = r.Node, "active", api.HealthOK, ""
			v.Replicas = append(v.Replicas[:j:j], v.Replicas[j+1:]...)
			return *v, nil
		}
	}
	return api.Volume{}, volume.Errorf(volume.CodeRefused, "volume %q: %s has no copy of it", v.Name, req.To)
}

// Promise implements api.Peer: no copy is here.
func (f *Fake) Promise(ctx context.Context, req api.PromiseRequest) (api.PromiseReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Promise", req); err != nil {
		return api.PromiseReply{}, err
	}
	var rep api.PromiseReply
	for _, v := range req.Volumes {
		rep.Answers = append(rep.Answers, api.PromiseAnswer{ID: v.ID, Promise: volume.Promise{Epoch: v.Epoch}})
	}
	return rep, nil
}
