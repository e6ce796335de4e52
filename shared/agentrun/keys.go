package agentrun

import (
	"crypto"
	"encoding/hex"
	"fmt"
	"sort"

	"certctl/shared/id"
	"certctl/shared/pki"
	"certctl/shared/wire"
)

// keyRecord is one kept key, in keys/<job id>.json. Job ids sort by time, so they order the keys of a certificate.
type keyRecord struct {
	JobID         id.Job         `json:"job_id"`
	CertificateID id.Certificate `json:"certificate_id"`
	SPKISHA256    string         `json:"spki_sha256"`
	KeyPEM        string         `json:"key_pem"`
	Deployed      bool           `json:"deployed"` // a version with this key was brought to a target
}

// keys finds the kept keys by job and by the hash of the public key.
type keys struct {
	store  *store
	byJob  map[id.Job]*keyRecord
	bySPKI map[string]*keyRecord
}

func openKeys(s *store) (*keys, error) {
	k := &keys{store: s, byJob: map[id.Job]*keyRecord{}, bySPKI: map[string]*keyRecord{}}
	names, err := s.list(keysDir)
	if err != nil {
		return nil, fmt.Errorf("listing the kept keys: %w", err)
	}
	for _, name := range names {
		var r keyRecord
		if _, err := s.getJSON(&r, keysDir, name); err != nil {
			return nil, err
		}
		k.index(&r)
	}
	return k, nil
}

func (k *keys) index(r *keyRecord) { k.byJob[r.JobID], k.bySPKI[r.SPKISHA256] = r, r }

// forJob answers the key made for a job, making and storing it the first time (SPEC AGT-3).
func (k *keys) forJob(j wire.Job) (crypto.Signer, error) {
	if r, ok := k.byJob[j.ID]; ok {
		return pki.ParseKey([]byte(r.KeyPEM))
	}
	algorithm, err := pki.ParseKeyAlgorithm(j.CSR.KeyAlgorithm)
	if err != nil {
		return nil, err
	}
	key, err := pki.Generate(algorithm)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	text, err := pki.MarshalKeyPEM(key)
	if err != nil {
		return nil, err
	}
	r := &keyRecord{JobID: j.ID, CertificateID: j.CertificateID, SPKISHA256: spkiHex(key.Public()), KeyPEM: string(text)}
	if err := k.save(r); err != nil {
		return nil, err
	}
	k.index(r)
	return key, nil
}

// forSPKI answers the key with this hash of its public key, nil if it is not kept here.
func (k *keys) forSPKI(hash string) (crypto.Signer, error) {
	r, ok := k.bySPKI[hash]
	if !ok {
		return nil, nil
	}
	return pki.ParseKey([]byte(r.KeyPEM))
}

// deployed marks a key as in use and forgets those that it supersedes: of the older keys of the certificate only the last
// deployed one is kept. Newer ones belong to renewals under way.
func (k *keys) deployed(certificate id.Certificate, hash string) error {
	current, ok := k.bySPKI[hash]
	if !ok || current.CertificateID != certificate {
		return nil
	}
	if !current.Deployed {
		current.Deployed = true
		if err := k.save(current); err != nil {
			return err
		}
	}
	var older []*keyRecord
	for _, r := range k.byJob {
		if r.CertificateID == certificate && r.JobID.String() < current.JobID.String() {
			older = append(older, r)
		}
	}
	sort.Slice(older, func(i, j int) bool { return older[i].JobID.String() > older[j].JobID.String() })
	keep := true
	for _, r := range older {
		if r.Deployed && keep {
			keep = false
			continue
		}
		if err := k.forget(r); err != nil {
			return err
		}
	}
	return nil
}

func (k *keys) save(r *keyRecord) error {
	if err := k.store.putJSON(r, keysDir, r.JobID.String()+".json"); err != nil {
		return fmt.Errorf("storing the key of job %s: %w", r.JobID, err)
	}
	return nil
}

func (k *keys) forget(r *keyRecord) error {
	if err := k.store.drop(keysDir, r.JobID.String()+".json"); err != nil {
		return fmt.Errorf("forgetting the key of job %s: %w", r.JobID, err)
	}
	delete(k.byJob, r.JobID)
	delete(k.bySPKI, r.SPKISHA256)
	return nil
}

func spkiHex(public crypto.PublicKey) string {
	sum := pki.SPKIHash(public)
	return hex.EncodeToString(sum[:])
}
