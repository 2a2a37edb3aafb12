package scenario

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/flocker-io/flocker/internal/api"
)

// operatorStep is a step of what people do with flockctl.
//
//	settings NODE KEY=VALUE..      flockctl settings set
//	together NODE.. settings KEY=VALUE..  each node is asked for one of them, all at once
//	shown NODE KEY=VALUE           until flockctl settings shows it there
//	set NODE VOLUME KEY=VALUE..    flockctl volume set
func (w *World) operatorStep(words []string) error {
	node := func() *Machine { return w.Machine(words[1]) }
	switch words[0] {
	case "settings":
		_, err := node().API().ChangeSettings(w.ctx(), api.SettingsRequest{Set: pairs(words[2:])})
		return err
	case "together":
		return w.together(words[1:])
	case "shown":
		w.Await(words[1]+" shows "+words[2], func() bool {
			s, err := node().API().Settings(w.ctx())
			return err == nil && slices.ContainsFunc(s.Settings, func(x api.Setting) bool { return x.Key+"="+x.Value == words[2] })
		})
		return nil
	case "set":
		_, err := node().API().UpdateVolume(w.ctx(), words[2], api.UpdateVolumeRequest{Options: pairs(words[3:])})
		return err
	}
	w.t.Fatalf("no such step: %q", words)
	return nil
}

// together changes one setting through each node, all at the same moment.
func (w *World) together(words []string) error {
	var nodes, settings []string
	for i, word := range words {
		if word == "settings" {
			nodes, settings = words[:i], words[i+1:]
		}
	}
	errs := make([]error, len(nodes))
	var all sync.WaitGroup
	for i, name := range nodes {
		m := w.Machine(name)
		all.Go(func() {
			_, errs[i] = m.API().ChangeSettings(w.ctx(), api.SettingsRequest{Set: pairs(settings[i : i+1])})
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// pairs reads KEY=VALUE words.
func pairs(words []string) map[string]string {
	out := map[string]string{}
	for _, word := range words {
		k, v, _ := strings.Cut(word, "=")
		out[k] = v
	}
	return out
}
