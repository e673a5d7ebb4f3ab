package headgate_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"headgate.dev/go/headgate"
)

// isA says whether errors.As finds T.
func isA[T error](err error) bool {
	var found T
	return errors.As(err, &found)
}

var leaves = map[string]func(error) bool{
	"INVALID_REQUEST":               isA[*headgate.InvalidRequest],
	"UNSUPPORTED_PARAMETER":         isA[*headgate.UnsupportedParameter],
	"PROVIDER_REJECTED_REQUEST":     isA[*headgate.ProviderRejectedRequest],
	"CONTEXT_LENGTH_EXCEEDED":       isA[*headgate.ContextLengthExceeded],
	"INVALID_CREDENTIALS":           isA[*headgate.Unauthenticated],
	"MISSING_CREDENTIALS":           isA[*headgate.MissingCredentials],
	"MODEL_NOT_ALLOWED":             isA[*headgate.ModelNotAllowed],
	"CALLER_CREDENTIALS_REJECTED":   isA[*headgate.CallerCredentialsRejected],
	"MODEL_NOT_FOUND":               isA[*headgate.ModelNotFound],
	"PROVIDER_RESOURCE_NOT_FOUND":   isA[*headgate.ProviderResourceNotFound],
	"NO_ELIGIBLE_PROVIDER":          isA[*headgate.NoEligibleProvider],
	"PROVIDER_CREDENTIALS_REJECTED": isA[*headgate.ProviderCredentialsRejected],
	"PROVIDER_MODEL_MISSING":        isA[*headgate.ProviderModelMissing],
	"OPAQUE_STATE_REJECTED":         isA[*headgate.OpaqueStateRejected],
	"RATE_LIMITED":                  isA[*headgate.RateLimited],
	"PROVIDER_RATE_LIMITED":         isA[*headgate.ProviderRateLimited],
	"BUDGET_EXCEEDED":               isA[*headgate.BudgetExceeded],
	"PROVIDER_QUOTA_EXHAUSTED":      isA[*headgate.ProviderQuotaExhausted],
	"GATEWAY_OVERLOADED":            isA[*headgate.GatewayOverloaded],
	"GATEWAY_DRAINING":              isA[*headgate.GatewayDraining],
	"PROVIDER_ERROR":                isA[*headgate.ProviderError],
	"PROVIDER_UNREACHABLE":          isA[*headgate.ProviderUnreachable],
	"PROVIDER_OVERLOADED":           isA[*headgate.ProviderOverloaded],
	"PROVIDER_TIMEOUT":              isA[*headgate.ProviderTimeout],
	"PROVIDER_PROTOCOL_ERROR":       isA[*headgate.ProviderProtocolError],
	"STREAM_INTERRUPTED":            isA[*headgate.StreamInterrupted],
	"DEADLINE":                      isA[*headgate.DeadlineExceeded],
	"INTERNAL":                      isA[*headgate.InternalError],
}

func failing(t *testing.T, client *headgate.Client, model string) *headgate.CallFailed {
	t.Helper()
	_, err := client.Generate(named(t, "of "+model), headgate.Ask(model, "Hi"))
	var failed *headgate.CallFailed
	if !errors.As(err, &failed) {
		t.Fatalf("%s: failed as %v", model, err)
	}
	return failed
}

func TestEveryReasonIsATypeOfItsOwnWithWhatTheDetailsSay(t *testing.T) {
	_, client := start(t)
	for reason, is := range leaves {
		model := "error:" + reason
		_, err := client.Generate(named(t, "of "+model), headgate.Ask(model, "Hi"))
		if !is(err) {
			t.Errorf("%s: failed as %T", reason, err)
		}
		failed := failing(t, client, model)
		if failed.Reason != reason || failed.Message != "told by "+reason || failed.RequestID != "of "+model {
			t.Errorf("%s: failed as %v", reason, failed)
		}
		if failed.Provider() != "p" || failed.Attempts() != 2 || status.Code(err) != failed.Code {
			t.Errorf("%s: details %v", reason, failed.Details)
		}
	}
}

func TestEveryReasonOfTheScriptIsTested(t *testing.T) {
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	var models map[string]json.RawMessage
	if err := json.Unmarshal(text, &models); err != nil {
		t.Fatal(err)
	}
	for model := range models {
		reason, is := strings.CutPrefix(model, "error:")
		if _, tested := leaves[reason]; is && !tested && reason == strings.ToUpper(reason) {
			t.Errorf("%s has no test", reason)
		}
	}
}

func TestErrorsAreTheirParentsToo(t *testing.T) {
	_, client := start(t)
	parents := map[string][]func(error) bool{
		"UNSUPPORTED_PARAMETER":       {isA[*headgate.InvalidRequest]},
		"CONTEXT_LENGTH_EXCEEDED":     {isA[*headgate.ProviderRejectedRequest]},
		"MISSING_CREDENTIALS":         {isA[*headgate.Unauthenticated]},
		"MODEL_NOT_ALLOWED":           {isA[*headgate.PermissionDenied]},
		"PROVIDER_RESOURCE_NOT_FOUND": {isA[*headgate.NotFound]},
		"OPAQUE_STATE_REJECTED":       {isA[*headgate.FailedPrecondition]},
		"PROVIDER_RATE_LIMITED":       {isA[*headgate.RateLimited], isA[*headgate.ResourceExhausted]},
		"PROVIDER_TIMEOUT":            {isA[*headgate.ProviderError], isA[*headgate.Unavailable]},
	}
	for reason, all := range parents {
		_, err := client.Generate(t.Context(), headgate.Ask("error:"+reason, "Hi"))
		for i, is := range all {
			if !is(err) {
				t.Errorf("%T is not its parent %d", err, i)
			}
		}
		if isA[*headgate.InternalError](err) {
			t.Errorf("%T is an InternalError", err)
		}
	}
}

func TestDetailsAreTyped(t *testing.T) {
	_, client := start(t)
	limited := failing(t, client, "error:RATE_LIMITED")
	if limited.RetryAfter != 1500*time.Millisecond || !limited.Retryable || limited.Limits[0].Subject != "tenant:acme model:fast" {
		t.Errorf("limited: %+v", limited)
	}
	invalid := failing(t, client, "error:UNSUPPORTED_PARAMETER")
	if invalid.Retryable || invalid.Violations[0].Field != "config.top_k" {
		t.Errorf("invalid: %+v", invalid)
	}
	if missing := failing(t, client, "error:PROVIDER_RESOURCE_NOT_FOUND"); *missing.Resource != (headgate.Resource{Type: "file", Name: "file-1"}) {
		t.Errorf("missing: %+v", missing)
	}
	_, err := client.Generate(t.Context(), headgate.Ask("error:PROVIDER_TIMEOUT", "Hi"))
	var late *headgate.ProviderTimeout
	if !errors.As(err, &late) || late.Phase() != "idle" || !late.Retryable {
		t.Errorf("late: %v", err)
	}
}

func TestReasonsOfLaterReleasesBecomeTheTypeOfTheirCode(t *testing.T) {
	_, client := start(t)
	_, err := client.Generate(t.Context(), headgate.Ask("error:later", "Hi"))
	if !isA[*headgate.FailedPrecondition](err) || failing(t, client, "error:later").Reason != "SOMETHING_NEW" {
		t.Errorf("failed as %T", err)
	}
	if bare := failing(t, client, "error:bare"); bare.Code != codes.Unknown {
		t.Errorf("failed as %v", bare)
	}
}

func TestInterruptedStreamHasWhatCameInPartial(t *testing.T) {
	_, client := start(t)
	for model, partial := range map[string]string{"interrupted": "half an answer", "unfinished": "half", "cut-off": "half"} {
		_, err := client.Stream(t.Context(), headgate.Ask(model, "Hi")).Final()
		var interrupted *headgate.StreamInterrupted
		if !errors.As(err, &interrupted) || interrupted.Partial.Text() != partial || status.Code(err) != codes.Aborted {
			t.Errorf("%s: failed as %v", model, err)
		}
	}
}

func TestStreamOfWhichNothingCameMayBeAskedForAgain(t *testing.T) {
	_, client := start(t)
	_, err := client.Stream(t.Context(), headgate.Ask("busy-for-good", "Hi")).Final()
	var overloaded *headgate.ProviderOverloaded
	if !errors.As(err, &overloaded) || overloaded.Partial.Text() != "" || !overloaded.Retryable {
		t.Errorf("failed as %v", err)
	}
}

func TestUnavailableIsSentAgainBeforeTheFirstContent(t *testing.T) {
	server, client := start(t)
	answer, err := client.Generate(named(t, "again-1"), headgate.Ask("busy-once", "Hi"))
	if err != nil || answer.Text() != "fine" {
		t.Errorf("answered %v, %v", answer, err)
	}
	answer, err = client.Stream(named(t, "again-2"), headgate.Ask("busy-once-streamed", "Hi")).Final()
	if err != nil || answer.Text() != "fine" {
		t.Errorf("answered %v, %v", answer, err)
	}
	server.seen(t, "again-1", 2)
	server.seen(t, "again-2", 2)
}

func TestNothingIsSentAgainAfterTheFirstContentNorAgainstAdviceNorForOtherCodes(t *testing.T) {
	server, client := start(t)
	_, err := client.Stream(named(t, "of busy-later"), headgate.Ask("busy-later", "Hi")).Final()
	var later *headgate.ProviderOverloaded
	if !errors.As(err, &later) || later.Partial.Text() != "half" || later.Retryable {
		t.Errorf("failed as %v", err)
	}
	failing(t, client, "busy-for-good")
	failing(t, client, "limited-once")
	time.Sleep(300 * time.Millisecond)
	for _, model := range []string{"busy-later", "busy-for-good", "limited-once"} {
		if calls := server.seen(t, "of "+model, 1); len(calls) != 1 {
			t.Errorf("%s: %d calls", model, len(calls))
		}
	}
}

func TestCallsTakeTurnsOverAddressesAndGoOnWhenAServerDies(t *testing.T) {
	server, _ := start(t)
	other, err := startScripted(script)
	if err != nil {
		t.Fatal(err)
	}
	defer other.stop()
	both := connect(t, server.address+","+other.address)
	for range 20 {
		if _, err := both.Generate(named(t, "turns"), headgate.Ask("hello", "Hi")); err != nil {
			t.Fatal(err)
		}
	}
	here, there := len(server.all(t, "turns")), len(other.all(t, "turns"))
	if here < 5 || there < 5 || here+there != 20 {
		t.Errorf("%d calls here, %d there", here, there)
	}
	hanging := connect(t, other.address).Stream(t.Context(), headgate.Ask("hanging", "Hi"))
	var broken error
	for _, err := range hanging.Text() {
		other.stop()
		broken = err
	}
	var interrupted *headgate.StreamInterrupted
	if !errors.As(broken, &interrupted) || interrupted.Partial.Text() != "first" || interrupted.Retryable {
		t.Errorf("failed as %v", broken)
	}
	for range 20 {
		if _, err := both.Stream(named(t, "alone"), headgate.Ask("hello", "Hi")).Final(); err != nil {
			t.Fatal(err)
		}
	}
	if calls := server.all(t, "alone"); len(calls) != 20 {
		t.Errorf("%d calls", len(calls))
	}
}

func TestServerThatNobodyReachesIsServerUnreachable(t *testing.T) {
	_, err := connect(t, "127.0.0.1:1").Generate(t.Context(), headgate.Ask("hello", "Hi"))
	if !isA[*headgate.ServerUnreachable](err) {
		t.Errorf("failed as %v", err)
	}
}

func TestKeysAndTokensGoAsBearerTheTokenAnewForEachCall(t *testing.T) {
	server, client := start(t, headgate.WithAPIKey("key-1"))
	count := 0
	_, renewing := start(t, headgate.WithTokenSource(func(context.Context) (string, error) {
		count++
		return "token-" + strconv.Itoa(count), nil
	}))
	own := metadata.AppendToOutgoingContext(named(t, "auth-2"), "x-provider-key-openai", "own")
	for _, call := range []func() (*headgate.Answer, error){
		func() (*headgate.Answer, error) {
			return client.Generate(named(t, "auth-1"), headgate.Ask("hello", "Hi"))
		},
		func() (*headgate.Answer, error) { return renewing.Generate(t.Context(), headgate.Ask("hello", "Hi")) },
		func() (*headgate.Answer, error) { return renewing.Generate(own, headgate.Ask("hello", "Hi")) },
	} {
		if _, err := call(); err != nil {
			t.Fatal(err)
		}
	}
	if sent := server.seen(t, "auth-1", 1)[0].Metadata["authorization"]; sent != "Bearer key-1" {
		t.Errorf("sent %s", sent)
	}
	sent := server.seen(t, "auth-2", 1)[0].Metadata
	if sent["authorization"] != "Bearer token-"+strconv.Itoa(count) || count < 2 || sent["x-provider-key-openai"] != "own" {
		t.Errorf("sent %v", sent)
	}
}

func TestAnEmptyKeyIsNotSent(t *testing.T) {
	t.Setenv("HEADGATE_API_KEY", "of-the-environment")
	server, client := start(t, headgate.WithAPIKey(""))
	if _, err := client.Generate(named(t, "auth-3"), headgate.Ask("hello", "Hi")); err != nil {
		t.Fatal(err)
	}
	if sent, there := server.seen(t, "auth-3", 1)[0].Metadata["authorization"]; there {
		t.Errorf("sent %q", sent)
	}
}

func TestSenselessSettingsAreRefusedAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string][]headgate.Option{
		"TLS in the clear":     {headgate.WithTLS(nil), headgate.WithInsecure()},
		"a missing file":       {headgate.WithTLSFiles("missing.pem", "", "")},
		"no certificate":       {headgate.WithTLSFiles(file, "", "")},
		"half a pair":          {headgate.WithTLSFiles("", file, "")},
		"no batch":             {headgate.WithEmbedBatch(0, 1)},
		"a bad service config": {headgate.WithServiceConfig("{")},
	} {
		if _, err := headgate.New("example.com:443", options...); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestMediaComeFromBytesFilesAndAddresses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "note.pdf")
	if err := os.WriteFile(file, []byte("%PDF"), 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := headgate.File(file)
	if err != nil {
		t.Fatal(err)
	}
	image, err := headgate.Image([]byte("\x89PNG\r\n\x1a\n"))
	if err != nil {
		t.Fatal(err)
	}
	address := headgate.URL("https://example.com/x.webp?size=2", "")
	types := []string{read.GetMedia().MimeType, image.GetMedia().MimeType, address.GetMedia().MimeType}
	if !slices.Equal(types, []string{"application/pdf", "image/png", "image/webp"}) || read.GetMedia().Filename != "note.pdf" {
		t.Errorf("types %v of %v", types, read)
	}
	if _, err := headgate.Image([]byte("text")); err == nil {
		t.Error("text is an image")
	}
	if _, err := headgate.File("missing.png"); err == nil {
		t.Error("a missing file is read")
	}
}
