// Command bbolt-check runs bbolt's own consistency check on files, read-only.
//
// A freelist is not required: BuildKit 0.34 runs its databases without a synced one,
// and bbolt then rebuilds it by reachability before it checks.
//
// Exit status: 0 when every file is clean, 1 when any has a fault, 2 on wrong usage.
package main

import (
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"
)

func main() {
	files := os.Args[1:]
	if len(files) == 0 {
		fmt.Fprintln(os.Stderr, "usage: bbolt-check FILE...")
		os.Exit(2)
	}
	status := 0
	for _, file := range files {
		faults := check(file)
		for _, fault := range faults {
			fmt.Printf("%s: %v\n", file, fault)
		}
		if len(faults) > 0 {
			status = 1
		} else {
			fmt.Printf("%s: ok\n", file)
		}
	}
	os.Exit(status)
}

// check returns what is wrong with one file. bbolt panics on some damage; that is a fault too.
func check(file string) (faults []error) {
	defer func() {
		if r := recover(); r != nil {
			faults = append(faults, fmt.Errorf("panic: %v", r))
		}
	}()
	// bbolt would create a missing file even when it opens read-only on some releases.
	if _, err := os.Stat(file); err != nil {
		return []error{err}
	}
	db, err := bbolt.Open(file, 0, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true, Timeout: 2 * time.Second})
	if err != nil {
		return []error{err}
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		// The channel must be drained to its end, or Check's goroutine blocks on it.
		for err := range tx.Check() {
			faults = append(faults, err)
		}
		// Check does not open values: walk every bucket, so that nested roots are read as a client reads them.
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error { return walk(b) })
	})
	if err != nil {
		faults = append(faults, err)
	}
	return faults
}

func walk(b *bbolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		if v != nil {
			return nil
		}
		child := b.Bucket(k)
		if child == nil {
			return fmt.Errorf("bucket %q does not open", k)
		}
		return walk(child)
	})
}
