package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf8"
)

// foreignHashes are hashes of testPassword that other programs made, at the lowest cost that they offer.
var foreignHashes = map[string]string{
	// htpasswd -nbBC 5 x 'correct horse battery'
	"htpasswd": "$2y$05$Mug8xFH8k5d0d362YtsyJ.HiuLRxLd4zcRCnDsUydl5caXS75hJrK",
	// php -r 'echo password_hash("correct horse battery", PASSWORD_BCRYPT, ["cost" => 5]);'
	"PHP": "$2y$05$QjlqQFTUfqSjZaZj52JFB.G8IA2GNILQTaX7kxTII0emDpgULV5/e",
	// python3 -c 'import crypt; print(crypt.crypt("correct horse battery", "$2a$05$abcdefghijklmnopqrstu."))'
	"bcrypt 2a": "$2a$05$abcdefghijklmnopqrstu.qddzwtzbaQLUId2OAaO45t9g8wH6VC.",
	// python3 -c 'import bcrypt; print(bcrypt.hashpw(b"correct horse battery", bcrypt.gensalt(5)).decode())'
	"bcrypt 2b": "$2b$05$piCR3bddlSmg2NJng2mHEuRpsXtU6BVFw.hetRe94d6FAUjSNDgJe",
	// printf 'correct horse battery' | argon2 somesalt12345678 -id -t 1 -k 64 -p 1 -l 32 -e
	"Argon2id": "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQxMjM0NTY3OA$bH+kGuewDq9DAPjDN5OGN0CeLFEXtpnENjq2nGPqNYs",
	// printf 'correct horse battery' | argon2 somesalt12345678 -i -t 3 -k 64 -p 2 -l 24 -e
	"Argon2i": "$argon2i$v=19$m=64,t=3,p=2$c29tZXNhbHQxMjM0NTY3OA$8u/laAQJHDhITYU4vjkKsnXDKUlyn9a6",
	// python3 -c 'from passlib.hash import scrypt; print(scrypt.using(rounds=10).hash("correct horse battery"))'
	"passlib scrypt": "$scrypt$ln=10,r=8,p=1$nlNKae2dUyrl3FtLaS1FiA$irYAeWOLRcAyweodK0BSVS6zrWkJkPwGVMEekRd7Ps0",
	// python3, hashlib.scrypt(b"correct horse battery", salt=bytes(range(16)), n=1024, r=8, p=1, dklen=32), base64 without =
	"hashlib scrypt": "$scrypt$ln=10,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$hKGWL22WtdGfIbxEPAZ06BS2bWyYKuZIKvypfAlYOWk",
	// Django 3.2, PBKDF2PasswordHasher().encode("correct horse battery", "seasalt", 1000); hashlib.pbkdf2_hmac gives the same
	"Django": "pbkdf2_sha256$1000$seasalt$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww=",
	// Django 3.2, its own salt and iterations
	"Django as it comes": "pbkdf2_sha256$260000$wTDEAgmFFyARCp2ySXxKLs$wVzT41xYCV5E9qqDCy5T7k8xfXm5+3POG3pWWk7o7Gc=",
}

// R31: what another implementation hashed signs in and is upgraded; a wrong password neither.
func TestForeignPasswordHashes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t).fullCost()
	m := s.newUser("ada@example.com", "user")
	for name, hash := range foreignHashes {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			s.exec("update users set password_hash = $1", hash)
			s.signInAs(m.email, testPassword+"!").want(400, "invalid_grant")
			if scalar[string](s, "select password_hash from users") != hash {
				t.Error("a wrong password replaced the hash")
			}
			s.signInAs(m.email, testPassword).want(200, "")
			if now := scalar[string](s, "select password_hash from users"); !strings.HasPrefix(now, "$argon2id$v=19$m=19456,t=2,p=1$") {
				t.Errorf("the hash is %s", now)
			}
			s.signInAs(m.email, testPassword+"!").want(400, "invalid_grant")
			s.signInAs(m.email, testPassword).want(200, "")
		})
	}
}

// R28: bcrypt reads 72 bytes; the hash that replaces it reads all that was typed.
func TestLongPasswordHashedByBcrypt(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	// python3 -c 'import crypt; print(crypt.crypt("x" * 80, crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=2**5)))'
	s.exec("update users set password_hash = '$2b$05$crlFNTgdE3ms19i.VofP9.Cr4T9qp3lC7B35IycXjl7QFPxs1YoZC'")
	s.signInAs(m.email, strings.Repeat("x", 71)).want(400, "invalid_grant")
	s.signInAs(m.email, strings.Repeat("x", 80)).want(200, "")
	s.signInAs(m.email, strings.Repeat("x", 79)).want(400, "invalid_grant")
	s.signInAs(m.email, strings.Repeat("x", 80)).want(200, "")
}

// No hash costs more than its ceiling: neither a row of the database nor a line of an import.
func TestHashCeilings(t *testing.T) {
	t.Parallel()
	im := &importer{rules: newRules(newPasswords(8, currentParams))}
	argon2, scrypt := "$%s$v=19$m=%d,t=%d,p=%d$c29tZXNhbHQxMjM0NTY3OA$bH+kGuewDq9DAPjDN5OGN0CeLFEXtpnENjq2nGPqNYs",
		"$scrypt$ln=%d,r=%d,p=%d$AAECAwQFBgcICQoLDA0ODw$hKGWL22WtdGfIbxEPAZ06BS2bWyYKuZIKvypfAlYOWk"
	for _, tc := range []struct {
		hash string
		ok   bool
	}{
		{fmt.Sprintf(argon2, "argon2id", 256<<10, 10, 16), true},
		{fmt.Sprintf(argon2, "argon2id", 256<<10+1, 1, 1), false},
		{fmt.Sprintf(argon2, "argon2id", 64, 11, 1), false},
		{fmt.Sprintf(argon2, "argon2id", 64, 1, 17), false},
		{fmt.Sprintf(argon2, "argon2i", 256<<10, 10, 16), true},
		{fmt.Sprintf(argon2, "argon2i", 256<<10+1, 1, 1), false},
		{fmt.Sprintf(argon2, "argon2i", 64, 11, 1), false},
		{strings.Replace(foreignHashes["htpasswd"], "$05$", "$14$", 1), true},
		{strings.Replace(foreignHashes["htpasswd"], "$05$", "$15$", 1), false},
		{strings.Replace(foreignHashes["bcrypt 2a"], "$05$", "$31$", 1), false},
		{fmt.Sprintf(scrypt, 17, 8, 1), true},
		{fmt.Sprintf(scrypt, 18, 8, 1), true},
		{fmt.Sprintf(scrypt, 19, 8, 1), false},
		{fmt.Sprintf(scrypt, 21, 1, 1), false},
		{fmt.Sprintf(scrypt, 10, 33, 1), false},
		{fmt.Sprintf(scrypt, 10, 8, 5), false},
		{fmt.Sprintf(scrypt, 62, 8, 1), false},
		{strings.Replace(foreignHashes["Django"], "$1000$", "$2000000$", 1), true},
		{strings.Replace(foreignHashes["Django"], "$1000$", "$2000001$", 1), false},
		{strings.Replace(foreignHashes["Django"], "$1000$", "$99999999999999999999$", 1), false},
	} {
		_, err := parseHash(tc.hash)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.hash, err)
		}
		_, err = im.parse([]byte(`{"email":"ada@example.com","name":"Ada","password_hash":"` + tc.hash + `"}`))
		if (err == nil) != tc.ok || err != nil && (!strings.HasPrefix(err.Error(), "password_hash ") || strings.Contains(err.Error(), tc.hash)) {
			t.Errorf("import of %s: %v", tc.hash, err)
		}
	}
}

// R30: what everybody tries first is refused, whatever the case of its letters, and so are the own address and the
// product's name with digits around them; a passphrase that holds any of them is not.
func TestCommonPasswords(t *testing.T) {
	t.Parallel()
	p := newPasswords(8, currentParams)
	long := 0
	for line := range strings.Lines(commonPasswords()) {
		if len(line) > 12 {
			long++
		}
	}
	if long < 3000 {
		t.Errorf("the list has %d passwords of the default length", long)
	}
	for _, tc := range []struct {
		password string
		refused  bool
	}{
		{"password1234", true}, {"PassWord1234", true}, {"123456789012", true}, {"aaaaaaaaaaaa", true}, {"1q2w3e4r5t6y", true},
		{"administrator", true}, {"password", true}, {"football", true}, {"Roster-2026!!", true}, {"ada.lovelace1", true},
		{"ada.lovelace@example.com", true},
		{"password1234 and more", false}, {"\npassword\n", false}, {"an ada.lovelace of my own", false}, {"rosters are nice", false},
		{testPassword, false}, {"49372650182734", false},
	} {
		if code, _ := p.problem(tc.password, "ada.lovelace@example.com"); (code == "password_too_common") != tc.refused {
			t.Errorf("%q: %q", tc.password, code)
		}
	}
}

// R30: the same rule wherever a password is chosen.
func TestCommonPasswordsEverywhere(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, admin := s.newUser("ada@example.com", "user"), s.newUser("root@example.com", "admin")
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": ada.email}).want(202, "")
	reset := s.waitMail(ada.email, 1).Token
	org := s.post("/v1/organizations", ada.token, map[string]string{"name": "Engines"}).want(201, "").str("id")
	s.post("/v1/organizations/"+org+"/invitations", ada.token, map[string]string{"email": "guest@example.com", "role": "member"}).want(201, "")
	invited := s.waitMail("guest@example.com", 1).Token
	const common = "Password1234"
	for path, q := range map[string]request{
		"/v1/auth/register":          {method: "POST", body: map[string]string{"email": "eve@example.com", "password": common, "name": "Eve"}},
		"/v1/auth/reset-password":    {method: "POST", body: map[string]string{"token": reset, "password": common}},
		"/v1/auth/accept-invitation": {method: "POST", body: map[string]string{"token": invited, "password": common, "name": "Guest"}},
		"/v1/users/me/password":      {method: "PUT", token: ada.token, body: map[string]string{"current_password": testPassword, "new_password": common}},
		"/v1/users":                  {method: "POST", token: admin.token, body: map[string]string{"email": "eve@example.com", "name": "Eve", "role": "user", "password": common}},
	} {
		q.path = path
		a := s.do(q).want(422, "invalid_fields")
		if f := a.fields(); f["/password"] != "password_too_common" && f["/new_password"] != "password_too_common" {
			t.Errorf("%s: %s", path, a.body)
		}
	}
}

// R31: a salt of its own for every hash, so that equal passwords do not show and no table of hashes fits two of them.
func TestHashesAreSalted(t *testing.T) {
	t.Parallel()
	p := newPasswords(12, currentParams)
	salts := map[string]bool{}
	for range 3 {
		hash, err := p.hash(t.Context(), netip.Addr{}, testPassword)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
			t.Errorf("hashed by %s", hash[:30])
		}
		salt, err := base64.RawStdEncoding.DecodeString(strings.Split(hash, "$")[4])
		if err != nil || len(salt) != 16 || bytes.Equal(salt, make([]byte, 16)) || salts[string(salt)] {
			t.Errorf("salt of %s: %v", hash, err)
		}
		salts[string(salt)] = true
	}
	// R32: a core is left for everybody else.
	if places := p.gate.places; places != max(1, runtime.GOMAXPROCS(0)-1) {
		t.Errorf("%d places", places)
	}
}

func TestMalformedHashes(t *testing.T) {
	t.Parallel()
	b64 := base64.RawStdEncoding.EncodeToString
	for _, hash := range []string{
		"", "$", "$$", "plain text", "$1$salt$hash", "$5$salt$hash", "$argon2d$v=19$m=64,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
		"{SSHA}AAAA", "bcrypt_sha256$$2b$12$x", "pbkdf2_sha1$1000$seasalt$AAAA", "$2$05$x", "$2x$05$x", "5f4dcc3b5aa765d61d8327deb882cf99",
		// Argon2
		"$argon2id$", "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ", "$argon2id$v=16$m=64,t=1,p=1$c29tZXNhbHQxMjM0NTY3OA$vcFAG0kzijNSlx6BfKPGdcqbBcBsGgMh/hBhWGAhppg",
		"$argon2id$m=64,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$t=1,m=64,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=64,t=0,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=64,t=1,p=0$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=-64,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=64,t=1,p=256$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=4294967360,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=064,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=64,t=1,p=1,x=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=64,t=1,p=1$$AAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$", "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$AAAA", "$argon2id$v=19$m=64,t=1,p=1$????????????$AAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$" + b64(make([]byte, 65)), "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ=$AAAAAAAAAAAAAAAAAAAAAA",
		// bcrypt
		"$2a$", "$2a$05$", "$2b$05$tooshort", "$2b$03$" + strings.Repeat("a", 53), "$2b$xx$" + strings.Repeat("a", 53), "$2b$-5$" + strings.Repeat("a", 53),
		"$2b$05$" + strings.Repeat("a", 54), "$2b$05$" + strings.Repeat("\x00", 53), "$2b$05$" + strings.Repeat("!", 53), "$2b$05$" + strings.Repeat("ä", 26) + "a",
		// scrypt
		"$scrypt$", "$scrypt$ln=10,r=8,p=1$AAECAwQFBgcICQoLDA0ODw", "$scrypt$ln=0,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAA",
		"$scrypt$ln=10,r=0,p=1$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAA", "$scrypt$ln=10,r=8,p=0$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAA",
		"$scrypt$ln=-1,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAA", "$scrypt$r=8,ln=10,p=1$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAA",
		"$scrypt$ln=10,r=8,p=1junk$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAA", "$scrypt$ln=10,r=8,p=1\x00$AAECAwQFBgcICQoLDA0ODw$AAAAAAAAAAAAAAAAAAAAAA",
		"$scrypt$ln=10,r=8,p=1$AAEC$AAAAAAAAAAAAAAAAAAAAAA", "$scrypt$ln=10,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$AAAA", "SCRYPT$1024$8$1$AAAA$AAAA",
		// Django
		"pbkdf2_sha256$", "pbkdf2_sha256$1000$seasalt", "pbkdf2_sha256$1000$$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww=",
		"pbkdf2_sha256$0$seasalt$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww=", "pbkdf2_sha256$-1$seasalt$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww=",
		"pbkdf2_sha256$x$seasalt$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww=", "pbkdf2_sha256$1000$seasalt$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww",
		"pbkdf2_sha256$1000$seasalt$AAAA", "pbkdf2_sha256$1000$sea\x00salt$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww=",
		"pbkdf2_sha256$1000$seasalt$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww=$more", "!unusable",
		"pbkdf2_sha256$1000$" + strings.Repeat("salt", 10_000) + "$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww=",
	} {
		if _, err := parseHash(hash); err == nil {
			t.Errorf("%.80q was accepted", hash)
		}
	}
}

// Whatever happened to a good hash, reading it does not panic, and what is accepted can be stored and compared.
func TestDamagedHashes(t *testing.T) {
	t.Parallel()
	for name, hash := range foreignHashes {
		if name == "Django as it comes" {
			continue // costs more and shows nothing new
		}
		var damaged []string
		for i := range hash {
			damaged = append(damaged, hash[:i])
			for _, c := range []string{"\x00", "\n", "$", "é", "\xff"} {
				damaged = append(damaged, hash[:i]+c+hash[i+1:], hash[:i]+c+hash[i:])
			}
		}
		for _, d := range damaged {
			stored, err := parseHash(d)
			if err != nil {
				continue
			}
			if !utf8.ValidString(d) || strings.ContainsRune(d, 0) {
				t.Errorf("%s: %q was accepted, and PostgreSQL cannot store it", name, d)
				break
			}
			if stored.matches("not the password") {
				t.Errorf("%s: %q matches anything", name, d)
			}
		}
	}
}

// R13: a row with a hash that nobody can read is a password that nobody knows, not a defect.
func TestUnreadableStoredHash(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	for _, hash := range []string{"plain text", "$argon2id$v=19$m=9999999,t=2,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "$2b$31$" + strings.Repeat("a", 53)} {
		s.exec("update users set password_hash = $1", hash)
		s.signInAs(m.email, testPassword).want(400, "invalid_grant")
		s.do(request{method: "PUT", path: "/v1/users/me/password", token: m.token,
			body: map[string]string{"current_password": testPassword, "new_password": "a new password 1"}}).want(422, "invalid_fields")
	}
	// Its owner gets in again by mail.
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": m.email}).want(202, "")
	s.post("/v1/auth/reset-password", "", map[string]string{"token": s.waitMail(m.email, 1).Token, "password": "a new password 1"}).want(204, "")
	s.signInAs(m.email, "a new password 1").want(200, "")
}

// R35: an account that does not exist costs as much as one that does, and matches nothing. Not parallel: it counts what
// is allocated, which for Argon2id is the work.
func TestDummyPasswordHash(t *testing.T) {
	p := newPasswords(12, currentParams)
	if stored, err := parseHash(p.dummy); err != nil || stored.cost != currentParams {
		t.Fatal("the dummy is not of today's cost:", err)
	}
	for _, password := range []string{"", testPassword, p.dummy} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ok, weak, err := p.verify(t.Context(), netip.Addr{}, "", password)
		runtime.ReadMemStats(&after)
		if ok || weak || err != nil {
			t.Errorf("%q: %v %v %v", password, ok, weak, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got < uint64(currentParams.memory)<<10 {
			t.Errorf("only %d bytes of work", got)
		}
	}
}

// R32: what hashes leave behind is collected in proportion to what lives, be that little or much. Not parallel: it measures
// the heap.
func TestGarbageIsBounded(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	for _, living := range []int{0, 100 << 20} {
		lives := make([]byte, living)
		runtime.GC()
		boundGarbage()
		p := newPasswords(12, currentParams)
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		var most uint64
		for range 20 {
			if _, err := p.hash(t.Context(), netip.Addr{}, testPassword); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc)
		}
		hash := uint64(currentParams.memory) << 10
		if limit := (before.HeapAlloc+hash)*3/2 + maxGarbage + 2*hash; most > limit {
			t.Errorf("the heap grew from %d to %d bytes, more than %d", before.HeapAlloc, most, limit)
		}
		runtime.KeepAlive(lives)
	}
}

// R32: never more at work than the gate has places, whoever hurries; who is refused or gives up takes no place.
func TestPasswordGate(t *testing.T) {
	t.Parallel()
	p := newPasswords(12, currentParams)
	g := &p.gate
	var inside, most atomic.Int32
	entered := together(10*g.places, func(i int) bool {
		if err := g.enter(t.Context(), originOf(netip.AddrFrom4([4]byte{192, 0, byte(i), 1}))); err != nil {
			return false
		}
		defer g.leave()
		now := inside.Add(1)
		defer inside.Add(-1)
		for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
		}
		runtime.Gosched()
		return true
	})
	if running, waiting, _ := g.figures(); entered == 0 || int(most.Load()) > g.places || running+waiting != 0 { // on a slow machine some wait in vain
		t.Errorf("%d entered, %d at once, %d never left, of %d places", entered, most.Load(), running+waiting, g.places)
	}
	// Full: hashing and verifying, of whatever account, wait for a place and find none.
	leave := g.fill()
	_, _, refusedBefore := g.figures()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.hash(ended, netip.Addr{}, testPassword); err != errOverloaded {
		t.Error("hash:", err)
	}
	for name, hash := range map[string]string{"nobody": "", "htpasswd": foreignHashes["htpasswd"], "Argon2id": foreignHashes["Argon2id"]} {
		if _, _, err := p.verify(ended, netip.Addr{}, hash, testPassword); err != errOverloaded {
			t.Errorf("verify %s: %v", name, err)
		}
	}
	if _, waiting, refused := g.figures(); refused != refusedBefore+4 || waiting != 0 {
		t.Errorf("%d counted as refused of 4, %d as waiting", refused-refusedBefore, waiting)
	}
	waited := make(chan error)
	go func() { _, err := p.hash(t.Context(), netip.Addr{}, testPassword); waited <- err }()
	for waiting := 0; waiting != 1; _, waiting, _ = g.figures() {
		runtime.Gosched()
	}
	leave()
	if err := <-waited; err != nil {
		t.Error("whoever waited:", err)
	}
	ok, _, err := p.verify(t.Context(), netip.Addr{}, testPasswordHash(), testPassword)
	if running, waiting, _ := g.figures(); !ok || err != nil || running+waiting != 0 {
		t.Error(ok, err, running, waiting)
	}
}

// R27 to R30: each bound of a password, on both of its sides.
func TestPasswordBounds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	root := s.newUser("root@example.com", "admin")
	long := strings.Repeat("zq4 wombat-", 24)
	for i, tc := range []struct{ local, password, code string }{
		{"", "zq4 wombat-1", ""},
		{"", "zq4 wombat-", "password_too_short"},
		{"", strings.Repeat("\u00e4", 11), "password_too_short"}, // code points, not bytes
		{"", long[:256], ""},
		{"", long[:257], "password_too_long"},
		{"", strings.Repeat("\U0001F600", 256), ""},
		{"", "zq4 wombat-\x00", "forbidden_character"},
		{"anna", "anna-2026-anna", "password_too_common"},
		{"anna", "AnnaAnna@anna_123", "password_too_common"},
		{"bob", "bob-2026-bob", ""}, // three letters are in too many words
	} {
		local := tc.local
		if local == "" {
			local = fmt.Sprint("someone", i)
		}
		a := s.post("/v1/users", root.token, map[string]string{"email": fmt.Sprintf("%s@%d.example.com", local, i), "name": "X", "role": "user", "password": tc.password})
		if got := a.status; tc.code == "" && got != 201 || tc.code != "" && (got != 422 || a.fields()["/password"] != tc.code) {
			t.Errorf("%.20q: %d %s", tc.password, got, a.body)
		}
	}
}
