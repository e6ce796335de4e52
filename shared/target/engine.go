package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"certctl/shared/fault"
	"certctl/shared/wire"
)

// The steps of a deployment. Rename points divide the swap of several files; restore and the two after it are the roll back.
const (
	StepCheck             = "check"
	StepBackup            = "backup"
	StepJournal           = "journal"
	StepStage             = "stage"
	StepSwap              = "swap"
	PointRenameChain      = "rename-chain"
	PointRenameCert       = "rename-certificate"
	PointRenameKey        = "rename-key"
	StepValidate          = "validate"
	StepReload            = "reload"
	StepVerify            = "verify"
	StepCommit            = "commit"
	StepRestore           = "restore"
	StepValidateAfterUndo = "validate-previous"
	StepReloadAfterUndo   = "reload-previous"
)

// Points is the one list of places where a deployment can be divided by a crash, in order. The conformance suite kills a
// process before and after each; a step that is not listed here panics.
var Points = []string{
	StepCheck, StepBackup, StepJournal, StepStage, StepSwap,
	PointRenameChain, PointRenameCert, PointRenameKey,
	StepValidate, StepReload, StepVerify, StepCommit,
	StepRestore, StepValidateAfterUndo, StepReloadAfterUndo,
}

// Moment is before or after a point.
type Moment string

// The moments.
const (
	Before Moment = "before"
	After  Moment = "after"
)

// rollbackTime bounds what is done after a failure or a cancelled context once files have changed.
const rollbackTime = 3 * time.Minute

// Engine deploys. One engine owns its folder. Deploy may run concurrently for different targets; for one target, one at a time
// (the server grants one Running deployment per target).
type Engine struct {
	Dir      string // absolute; journals and previous versions (private keys among them) with mode 0700
	Drivers  Registry
	Host     Host
	Dial     DialContext                  // for the probe; nil is a plain dialer
	Patience time.Duration                // of the probe; 0 is its default
	Hook     func(point string, w Moment) // tests: called around each of Points
}

// Deploy brings a bundle to a target and proves that it is served. The receipt is filled on failure too. If the place holds
// the bundle already and serves it, nothing is touched and Changed is false. Deploy stops between steps when ctx ends before
// the swap; after that it finishes or rolls back.
func (e *Engine) Deploy(ctx context.Context, t wire.Target, b *Bundle) (wire.Receipt, error) {
	r := &run{e: e, b: b, t: t, receipt: wire.Receipt{VersionID: t.VersionID, Steps: []wire.Step{}}}
	err := r.deploy(ctx)
	return r.receipt, err
}

type run struct {
	e       *Engine
	b       *Bundle
	t       wire.Target
	d       Deployment
	receipt wire.Receipt
	detail  string // what the running step has to say
}

func (r *run) deploy(ctx context.Context) error {
	var held bool
	err := r.step(ctx, StepCheck, func(ctx context.Context) (err error) {
		held, err = r.check(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if held {
		r.receipt.PreviousFingerprint = Fingerprint(r.b.Chain[0])
		return r.confirm(ctx)
	}
	if err := r.prepare(ctx); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := r.change(ctx); err != nil {
		return r.undo(ctx, err)
	}
	r.receipt.Changed = true
	return nil
}

// check opens the target, proves the pair, finishes what an earlier crash left here, and asks the place.
func (r *run) check(ctx context.Context) (held bool, err error) {
	opened, err := r.e.Drivers.Open(r.t.Type, r.t.Config)
	if err != nil {
		return false, err
	}
	if err := r.b.Prove(); err != nil {
		return false, err
	}
	name := r.t.ID.String()
	if name == "" {
		return false, fault.BadField("id", "the target has no id")
	}
	if _, err := r.e.recoverOne(ctx, filepath.Join(r.e.Dir, journalDir, name+".json")); err != nil {
		return false, fmt.Errorf("undoing an interrupted deployment: %w", err)
	}
	r.d = opened.Begin(r.b, Place{Host: &r.e.Host, Dir: r.e.Dir, Name: name, Point: r.e.point})
	return r.d.Check(ctx)
}

// confirm handles a place that holds the bundle already: one reload is tried if it is not served.
func (r *run) confirm(ctx context.Context) error {
	if !r.verifies() {
		return nil
	}
	if r.step(ctx, StepVerify, func(ctx context.Context) error { return r.verify(ctx, time.Second) }) == nil {
		return nil
	}
	if err := r.step(ctx, StepValidate, r.d.Validate); err != nil {
		return err
	}
	if err := r.step(ctx, StepReload, r.d.Reload); err != nil {
		return err
	}
	return r.step(ctx, StepVerify, func(ctx context.Context) error { return r.verify(ctx, r.e.Patience) })
}

func (r *run) prepare(ctx context.Context) error {
	err := r.step(ctx, StepBackup, func(ctx context.Context) (err error) {
		r.receipt.PreviousFingerprint, err = r.d.Backup(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err = r.step(ctx, StepJournal, r.d.Journal); err == nil {
		err = r.step(ctx, StepStage, r.d.Stage)
	}
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("stopped before %s: %w", StepSwap, ctx.Err())
	}
	if err != nil { // nothing of the target has changed: drop what was staged
		ctx = context.WithoutCancel(ctx)
		return errors.Join(err, r.d.RollBack(ctx), r.d.Commit(ctx))
	}
	return nil
}

func (r *run) change(ctx context.Context) error {
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{StepSwap, r.d.Swap},
		{StepValidate, r.d.Validate},
		{StepReload, r.d.Reload},
		{StepVerify, func(ctx context.Context) error { return r.verify(ctx, r.e.Patience) }},
		{StepCommit, r.d.Commit},
	}
	for _, s := range steps {
		if s.name == StepVerify && !r.verifies() {
			continue
		}
		if err := r.step(ctx, s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

// undo rolls back after cause and says how that went. The files go back first; a server that refuses even them is reported.
func (r *run) undo(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(ctx, rollbackTime)
	defer cancel()
	if err := r.step(ctx, StepRestore, r.d.RollBack); err != nil {
		return fmt.Errorf("%w; the previous version could not be put back and is tried again at the next start: %w", cause, err)
	}
	err := r.step(ctx, StepValidateAfterUndo, r.d.Validate)
	if err == nil {
		err = r.step(ctx, StepReloadAfterUndo, r.d.Reload)
	}
	r.receipt.RolledBack = true
	cause = errors.Join(cause, r.d.Commit(ctx))
	if err != nil {
		return fmt.Errorf("%w; the previous files are back, but the server did not take them: %w", cause, err)
	}
	return fmt.Errorf("%w; the previous version is back", cause)
}

func (r *run) verifies() bool { return r.t.Verify != nil && r.t.Verify.From != "worker" }

func (r *run) verify(ctx context.Context, patience time.Duration) error {
	dial := r.e.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	v := r.t.Verify
	served, err := Probe(ctx, dial, v.Address, Want{Chain: r.b.Chain, ServerName: v.ServerName, Patience: patience})
	r.receipt.ProbedAddress, r.receipt.ServedFingerprint, r.receipt.ServedSerial = v.Address, served.Fingerprint, served.Serial
	if err != nil {
		return err
	}
	r.detail = served.Note
	return nil
}

// step runs and records one step. The error says which step it was.
func (r *run) step(ctx context.Context, name string, do func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stopped before %s: %w", name, err)
	}
	r.e.point(name, Before)
	start := time.Now()
	r.detail = ""
	err := do(ctx)
	s := wire.Step{Name: name, Milliseconds: time.Since(start).Milliseconds(), Detail: r.detail}
	if err != nil {
		s.Detail = "failed"
		err = fmt.Errorf("%s: %w", name, err)
	}
	r.receipt.Steps = append(r.receipt.Steps, s)
	r.e.point(name, After)
	return err
}

func (e *Engine) point(name string, w Moment) {
	for _, p := range Points {
		if p == name {
			if e.Hook != nil {
				e.Hook(name, w)
			}
			return
		}
	}
	panic("target: step " + name + " is not in Points")
}
