// Package crash owns the registry of recorded steps: every place where a killed process divides an operation, with what is
// true on either side of it. Operations name their steps with At; a program built with the tag crashtest can be told to kill
// itself there, and a test walks the registry (bench/crash).
//
// In ordinary builds At is an empty function that the compiler removes. The agent's places are listed where the agent is
// (target.Points, agentrun.Points), since it links nothing of the server; both kinds read CERTCTL_CRASH_AT.
package crash

// Step names a place, e.g. "issue-store".
type Step string

// Moment is before or after a step.
type Moment string

// The moments. Of a step that commits, Before is the last moment inside the transaction and After the first outside.
const (
	Before Moment = "before"
	After  Moment = "after"
)

// Variable says where a crashtest build kills itself: <step>:<before|after>, and #n for the nth time, e.g. "issue-sign:after#2".
const Variable = "CERTCTL_CRASH_AT"

// TraceVariable names a file to which a crashtest build appends a line "<step>:<moment>" whenever it passes a step.
const TraceVariable = "CERTCTL_CRASH_TRACE"

// The steps.
const (
	StartKeepKey Step = "start-keep-admin-key"
	StartCommit  Step = "start-commit"

	Answer Step = "answer"

	Claim Step = "claim"

	IssueKeep  Step = "issue-keep-request"
	IssueSave  Step = "issue-save-driver"
	IssueSign  Step = "issue-sign"
	IssueStore Step = "issue-store"

	DeploySeal     Step = "deploy-seal"
	DeployProbe    Step = "deploy-probe"
	DeployComplete Step = "deploy-complete"

	Revoke Step = "revoke"

	CRLBegin Step = "crl-begin"
	CRLSign  Step = "crl-sign"
	CRLSwap  Step = "crl-swap"

	ResponderKeep  Step = "responder-keep-key"
	ResponderSave  Step = "responder-save-driver"
	ResponderStore Step = "responder-store"

	Reap       Step = "reap"
	Expire     Step = "expire"
	SweepSlice Step = "sweep-slice"

	Enroll    Step = "enroll"
	AcceptCSR Step = "accept-csr"
	Report    Step = "report"
)

// Entry describes a step.
type Entry struct {
	Operation string
	Step      Step
	Meaning   string // what has happened once it is over
}

// Steps is the one list. A step that is not in it panics in a crashtest build.
var Steps = []Entry{
	{"first start", StartKeepKey, "the admin key is on disk, the transaction is open"},
	{"first start", StartCommit, "issuer, profile, policy, canary and admin key are committed"},
	{"every write", Answer, "the effect, its audit event and the Idempotency-Key's answer are committed; the client has no answer"},
	{"every job", Claim, "the job is leased to this run"},
	{"issuance", IssueKeep, "the certificate request, and under server custody its sealed key, are stored"},
	{"issuance", IssueSave, "serial and TBS are stored"},
	{"issuance", IssueSign, "the CA has signed; nobody but this process knows the signature"},
	{"issuance", IssueStore, "version, desired deployments, job's end and audit event are committed"},
	{"deployment", DeploySeal, "the key is sealed to the agent and the job handed over"},
	{"deployment", DeployProbe, "the worker has seen what is served"},
	{"deployment", DeployComplete, "state, job's end and audit event are committed"},
	{"revocation", Revoke, "version, CRL entry, CRL job and audit event are written, not committed"},
	{"CRL", CRLBegin, "a number and a snapshot are taken"},
	{"CRL", CRLSign, "the list is signed and kept nowhere"},
	{"CRL", CRLSwap, "the list is current, the job ended"},
	{"responder", ResponderKeep, "the responder's sealed key is stored"},
	{"responder", ResponderSave, "serial and TBS of its certificate are stored"},
	{"responder", ResponderStore, "the certificate is in use, the job ended"},
	{"upkeep", Reap, "expired leases are given back"},
	{"upkeep", Expire, "what waited too long has ended"},
	{"sweep", SweepSlice, "a slice of due certificates has its jobs"},
	{"enrollment", Enroll, "agent and used token are written, not committed"},
	{"agent", AcceptCSR, "the request is written to the job, not committed"},
	{"agent", Report, "the report's effect is written, not committed"},
}
