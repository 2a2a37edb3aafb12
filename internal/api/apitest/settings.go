package apitest

import (
	"context"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// defaultSettings are those of a fresh fake. It takes any value, but no other key
// besides bandwidth:ZONE:ZONE.
func defaultSettings() []api.Setting {
	return []api.Setting{
		{Key: "trash-retention", Value: "7d", Default: true, About: "how long a removed volume can be brought back"},
		{Key: "aside-retention", Value: "30d", Default: true, About: "how long a set-aside copy stays"},
		{Key: "replica-replace-after", Value: "10m", Default: true, About: "how long a replica's node may be lost"},
	}
}

// Settings implements api.Backend.
func (f *Fake) Settings(ctx context.Context) (api.Settings, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Settings"); err != nil {
		return api.Settings{}, err
	}
	return f.showSettings(), nil
}

func (f *Fake) showSettings() api.Settings {
	out := api.Settings{Settings: defaultSettings(), Index: f.index}
	for _, s := range f.settings {
		if i := slices.IndexFunc(out.Settings, func(d api.Setting) bool { return d.Key == s.Key }); i >= 0 {
			out.Settings[i].Value, out.Settings[i].Default = s.Value, false
			continue
		}
		out.Settings = append(out.Settings, s)
		if s.Key == "bandwidth:berlin:mars" {
			out.Warnings = append(out.Warnings, s.Key+": no node is in zone mars")
		}
	}
	return out
}

// ChangeSettings implements api.Backend.
func (f *Fake) ChangeSettings(ctx context.Context, req api.SettingsRequest) (api.Settings, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "ChangeSettings", req); err != nil {
		return api.Settings{}, err
	}
	drop := func(key string) {
		f.settings = slices.DeleteFunc(f.settings, func(s api.Setting) bool { return s.Key == key })
	}
	for _, key := range sortedKeys(req.Set) {
		known := slices.ContainsFunc(defaultSettings(), func(d api.Setting) bool { return d.Key == key })
		if !known && (len(key) < 10 || key[:10] != "bandwidth:") {
			return api.Settings{}, volume.Errorf(volume.CodeInvalid, "there is no setting %q", key).WithHint("there is trash-retention")
		}
		value := req.Set[key]
		_, err := volume.ParsePeriod(value)
		if !known && value != "none" {
			_, err = volume.ParseSize(strings.TrimSuffix(value, "/s"))
		}
		if err != nil && (known || value != "none") {
			return api.Settings{}, volume.Errorf(volume.CodeInvalid, "setting %s: %v", key, err)
		}
		drop(key)
		if value != "none" {
			f.settings = append(f.settings, api.Setting{Key: key, Value: value, About: "a limit"})
		}
	}
	for _, key := range req.Reset {
		if !slices.ContainsFunc(f.showSettings().Settings, func(s api.Setting) bool { return s.Key == key }) {
			return api.Settings{}, volume.Errorf(volume.CodeInvalid, "there is no setting %q", key).WithHint("there is trash-retention")
		}
		drop(key)
	}
	f.index++
	return f.showSettings(), nil
}
