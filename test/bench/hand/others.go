package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
)

// others are the commands that are not a contender themselves.
var others = map[string]func(args []string) error{"sync": syncs, "volumes": volumes, "load": load, "age": age}

const socket = "/run/flocker/flockd.sock"

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// numbered reads the arguments of a command: one is a count.
func numbered(args []string, want, at int) (int, error) {
	if len(args) != want {
		return 0, errors.New("wrong number of arguments; the head of main.go lists them")
	}
	return strconv.Atoi(args[at])
}

func syncs(args []string) error {
	if len(args) < 3 || len(args)%2 == 0 {
		return errors.New("sync COUNT (VOLUME DIR)+")
	}
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	of := slices.Collect(slices.Chunk(args[1:], 2))
	client := api.NewUnixClient(socket)
	began := time.Now()
	if err := atOnce(len(of), func(i int) error {
		for range count {
			if err := small(of[i][1]); err != nil {
				return err
			}
			if _, err := client.SyncVolume(context.Background(), of[i][0], api.SyncRequest{}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	fmt.Println(0, time.Since(began).Seconds())
	return nil
}

// volumes are made by four at a time: more only wait for one another.
func volumes(args []string) error {
	from, err := numbered(args, 2, 0)
	if err != nil {
		return err
	}
	to, err := numbered(args, 2, 1)
	if err != nil {
		return err
	}
	client := api.NewUnixClient(socket)
	names := make(chan string)
	errs := make(chan error, 4)
	var makers sync.WaitGroup
	for range cap(errs) {
		makers.Go(func() {
			for name := range names {
				if _, err := client.CreateVolume(context.Background(), api.CreateVolumeRequest{
					Name: name, Options: map[string]string{"replicas": "1", "size": "64M"}}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	defer makers.Wait()
	defer close(names)
	for i := from; i <= to; i++ {
		select {
		case names <- fmt.Sprintf("idle-%d", i):
		case err := <-errs:
			return err
		}
	}
	return nil
}

func load(args []string) error {
	if len(args) != 1 {
		return errors.New("load DIR")
	}
	f, err := os.Create(args[0] + "/load")
	if err != nil {
		return err
	}
	data := make([]byte, 16<<10)
	for tick := range time.Tick(100 * time.Millisecond) {
		rand.Read(data)
		copy(data, tick.String())
		if _, err := f.Write(data); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

func age(args []string) error {
	count, err := numbered(args, 2, 1)
	if err != nil {
		return err
	}
	for range time.Tick(time.Second) {
		out, err := exec.Command("zfs", "list", "-H", "-p", "-d", "1", "-t", "snapshot", "-o", "creation", "-s", "createtxg", args[0]).Output()
		if err != nil {
			return err
		}
		lines := strings.Fields(string(out))
		created, err := strconv.ParseInt(lines[len(lines)-1], 10, 64)
		if err != nil {
			return err
		}
		fmt.Printf("%.1f\n", time.Since(time.Unix(created, 0)).Seconds())
		if count--; count == 0 {
			break
		}
	}
	return nil
}
