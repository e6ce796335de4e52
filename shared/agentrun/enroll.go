package agentrun

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"

	jose "github.com/go-jose/go-jose/v4"

	"certctl/shared/wire"
)

// ErrToken is an enrollment token that the server does not take. Waiting does not help.
var ErrToken = errors.New("the enrollment token is wrong, used or expired: make a new one with `certctl agent token` and start again")

// ErrNoToken is a first start without a token.
var ErrNoToken = errors.New("this agent is not enrolled: give CERTCTL_ENROLL_TOKEN, CERTCTL_ENROLL_TOKEN_FILE or --enroll-token-file")

// enroll reads the stored credential or gets one. The encryption key is stored before it is sent: the same key again is the
// same agent, so a lost answer is asked for again with the same token.
func (a *Agent) enroll(ctx context.Context, patient bool) error {
	var who identity
	found, err := a.store.getJSON(&who, agentFile)
	if err != nil {
		return err
	}
	credential, err := a.store.get(credentialFile)
	if err != nil {
		return fmt.Errorf("reading the credential: %w", err)
	}
	if found && len(credential) > 0 {
		a.client.agent, a.client.credential = who.AgentID, strings.TrimSpace(string(credential))
		return nil
	}
	request, err := a.enrollment()
	if err != nil {
		return err
	}
	answer, err := a.requestEnrollment(ctx, request, patient)
	if err != nil {
		return err
	}
	if err := a.store.put([]byte(answer.Credential), credentialFile); err != nil {
		return fmt.Errorf("storing the credential: %w", err)
	}
	if err := a.store.putJSON(identity{AgentID: answer.AgentID, Name: request.Name, URL: a.cfg.URL}, agentFile); err != nil {
		return fmt.Errorf("storing who this agent is: %w", err)
	}
	a.client.agent, a.client.credential = answer.AgentID, answer.Credential
	a.log.Info("enrolled", "agent", answer.AgentID, "name", request.Name)
	return nil
}

func (a *Agent) enrollment() (wire.Enroll, error) {
	if a.cfg.Token == "" {
		return wire.Enroll{}, ErrNoToken
	}
	if _, err := TokenPin(a.cfg.Token); err != nil {
		return wire.Enroll{}, err
	}
	key, err := a.store.encryptionKey()
	if err != nil {
		return wire.Enroll{}, err
	}
	public := key.Public()
	jwk, err := public.MarshalJSON()
	if err != nil {
		return wire.Enroll{}, fmt.Errorf("encoding the encryption key: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return wire.Enroll{}, fmt.Errorf("asking for the host name: %w", err)
	}
	name, text := a.cfg.Name, string(jwk)
	if name == "" {
		name = host
	}
	return wire.Enroll{Token: a.cfg.Token, Name: name, Hostname: host, OS: runtime.GOOS, Arch: runtime.GOARCH, Version: a.cfg.Version, PublicKey: &text}, nil
}

func (a *Agent) requestEnrollment(ctx context.Context, request wire.Enroll, patient bool) (wire.Enrolled, error) {
	for failures := 1; ; failures++ {
		var answer wire.Enrolled
		err := a.client.call(ctx, http.MethodPost, "/api/v1/agents/enroll", request, &answer)
		switch {
		case err == nil && (answer.AgentID.IsZero() || answer.Credential == ""):
			return answer, errors.New("enrolling: the server's answer lacks the credential")
		case err == nil:
			return answer, nil
		case hasStatus(err, http.StatusUnauthorized):
			return answer, ErrToken
		case !patient, permanent(err), errors.Is(err, errPlain), hasStatus(err, http.StatusForbidden):
			return answer, fmt.Errorf("enrolling: %w", err)
		}
		wait := backOff(failures, retryAfter(err))
		a.log.Warn("enrolling does not work yet; trying again", "after", wait, "error", err)
		if !sleep(ctx, wait) {
			return answer, fmt.Errorf("enrolling: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// encryptionKey is the agent's own key, to which the server seals keys in its custody (SPEC R4); made at the first use.
func (s *store) encryptionKey() (jose.JSONWebKey, error) {
	var key jose.JSONWebKey
	found, err := s.getJSON(&key, encryptionFile)
	if err != nil || found {
		return key, err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return key, fmt.Errorf("making the encryption key: %w", err)
	}
	key = jose.JSONWebKey{Key: private, Use: "enc"}
	if err := s.putJSON(key, encryptionFile); err != nil {
		return key, fmt.Errorf("storing the encryption key: %w", err)
	}
	return key, nil
}

// Rotate gets a new credential and stores it. The old one is used to ask; if the answer is lost it must still be good, which
// is the server's promise until the new one is first used.
func (a *Agent) Rotate(ctx context.Context) error {
	if err := a.enroll(ctx, false); err != nil {
		return err
	}
	var answer wire.Rotated
	if err := a.client.agentCall(ctx, http.MethodPost, "/credential/rotate", struct{}{}, &answer); err != nil {
		return fmt.Errorf("rotating the credential: %w", err)
	}
	if answer.Credential == "" {
		return errors.New("rotating the credential: the server's answer lacks it")
	}
	if err := a.store.put([]byte(answer.Credential), credentialFile); err != nil {
		return fmt.Errorf("storing the new credential: %w", err)
	}
	a.client.credential = answer.Credential
	return nil
}
