package scenario

import (
	"testing"
	"testing/synctest"

	"github.com/flocker-io/flocker/internal/container/containerfake"
)

func TestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Cluster()
		n2 := w.Machine("n2")
		if err := n2.Engine.CreateVolume("pg", map[string]string{"replicas": "2"}); err != nil {
			t.Fatal(err)
		}
		if err := n2.Engine.Run("web", containerfake.RunOptions{}, "pg"); err != nil {
			t.Fatal(err)
		}
		w.Await("replicas in sync", func() bool {
			v, err := w.Machine("n3").API().Volume(w.ctx(), "pg")
			return err == nil && v.Health == "ok"
		})
	})
}
