package headgate_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"headgate.dev/go/headgate"
	headgatev1 "headgate.dev/go/headgate/v1"
)

func TestGenerateAnswersAtOnce(t *testing.T) {
	server, client := start(t)
	answer, err := client.Generate(named(t, "generate-1"), headgate.Ask("hello", "Hi"))
	if err != nil {
		t.Fatal(err)
	}
	if answer.Text() != "Hello there" || answer.FinishReason() != headgatev1.FinishReason_FINISH_REASON_STOP {
		t.Errorf("answered %q, %s", answer.Text(), answer.FinishReason())
	}
	if call := server.seen(t, answer.RequestID, 1)[0]; call.Method != "Generate" {
		t.Errorf("called %s", call.Method)
	}
}

func TestStreamYieldsTypedEvents(t *testing.T) {
	_, client := start(t)
	var texts []string
	for event, err := range client.Stream(t.Context(), headgate.Ask("hello", "Hi")).Events() {
		if err != nil {
			t.Fatal(err)
		}
		switch kind := event.Event.(type) {
		case *headgatev1.StreamGenerateResponse_TextDelta:
			texts = append(texts, kind.TextDelta)
		case *headgatev1.StreamGenerateResponse_GenerationEnd:
			if kind.GenerationEnd.Usage.GetOutputTokens() != 2 {
				t.Errorf("usage %v", kind.GenerationEnd.Usage)
			}
		}
	}
	if !slices.Equal(texts, []string{"Hel", "lo ", "there"}) {
		t.Errorf("texts %q", texts)
	}
}

func TestTextComesAsItWasWrittenInAnyScript(t *testing.T) {
	const written = "Grüße ☕ 👩‍🚀 שלום e\u0301 \u2028\u0000\U0010FFFD"
	_, client := start(t)
	answer, err := client.Stream(t.Context(), headgate.Ask("unicode", written)).Final()
	if err != nil || answer.Text() != written {
		t.Errorf("answered %q, %v", answer.Text(), err)
	}
}

func TestFoldOfTheStreamEqualsTheAnswerAtOnce(t *testing.T) {
	_, client := start(t)
	for _, model := range []string{"hello", "everything", "pieces"} {
		whole, err := client.Generate(t.Context(), headgate.Ask(model, "Hi"))
		if err != nil {
			t.Fatal(err)
		}
		folded, err := client.Stream(t.Context(), headgate.Ask(model, "Hi")).Final()
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(whole.GenerateResponse, folded.GenerateResponse) {
			t.Errorf("%s: %v is not %v", model, folded, whole)
		}
	}
}

func TestPiecesOfEveryKindAreJoinedByCandidateAndPart(t *testing.T) {
	_, client := start(t)
	answer, err := client.Stream(t.Context(), headgate.Ask("pieces", "Hi")).Final()
	if err != nil {
		t.Fatal(err)
	}
	parts := answer.Message().Parts
	audio := parts[3].GetMedia()
	for got, want := range map[string]string{
		parts[0].GetReasoning().Text:                    "Let me think",
		string(parts[0].Signature):                      "sig2",
		answer.Text():                                   "Hi you",
		parts[2].GetToolCall().Arguments:                `{"a":1}`,
		audio.Transcript:                                "so it is",
		string(audio.GetData()):                         "\x00\x01\x02\x03\x04",
		parts[1].Citations[0].Uri:                       "https://example.com/",
		answer.Candidates[1].Message.Parts[0].GetText(): "other",
	} {
		if got != want {
			t.Errorf("%q is not %q", got, want)
		}
	}
	if len(parts[1].Logprobs.Tokens) != 2 || len(answer.Candidates) != 2 {
		t.Errorf("folded to %v", answer)
	}
}

func TestEventOfALaterReleaseIsIgnored(t *testing.T) {
	_, client := start(t)
	sent := 0
	raw, err := client.Stub().StreamGenerate(t.Context(), headgate.Ask("pieces", "Hi"))
	for err == nil {
		if _, err = raw.Recv(); err == nil {
			sent++
		}
	}
	known := 0
	for event, err := range client.Stream(t.Context(), headgate.Ask("pieces", "Hi")).Events() {
		if err != nil || event.Event == nil {
			t.Fatal(event, err)
		}
		known++
	}
	if sent == 0 || known != sent-1 {
		t.Errorf("%d of %d events", known, sent)
	}
}

func TestRecordedEventsFoldToTheAnswer(t *testing.T) {
	_, client := start(t)
	var events []*headgate.Event
	for event := range client.Stream(t.Context(), headgate.Ask("hello", "Hi")).Events() {
		events = append(events, event)
	}
	if answer := headgate.Fold(slices.Values(events)); answer.Candidates[0].Message.Parts[0].GetText() != "Hello there" {
		t.Errorf("folded to %v", answer)
	}
}

func TestLeavingALoopCancelsTheCall(t *testing.T) {
	server, client := start(t)
	stream := client.Stream(named(t, "leaving-1"), headgate.Ask("dripping", "Hi"))
	for range stream.Text() {
		break
	}
	if call := server.seen(t, "leaving-1", 1)[0]; call.Outcome != "CANCELLED" {
		t.Errorf("ended as %s", call.Outcome)
	}
	var left *headgate.CallCancelled
	if _, err := stream.Final(); !errors.As(err, &left) || !errors.Is(err, context.Canceled) || left.Partial.Text() != "a" {
		t.Errorf("final: %v", err)
	}
}

func TestCancellingTheContextCancelsTheCall(t *testing.T) {
	server, client := start(t)
	ctx, cancel := context.WithCancel(named(t, "cancel-1"))
	var last error
	for _, err := range client.Stream(ctx, headgate.Ask("hanging", "Hi")).Text() {
		cancel()
		last = err
	}
	var left *headgate.CallCancelled
	if !errors.As(last, &left) || server.seen(t, "cancel-1", 1)[0].Outcome != "CANCELLED" {
		t.Errorf("failed as %v", last)
	}
	cancel()
}

func TestDeadlineEndsACallAndReachesTheServer(t *testing.T) {
	server, client := start(t)
	ctx, cancel := context.WithTimeout(named(t, "deadline-1"), 150*time.Millisecond)
	defer cancel()
	_, err := client.Generate(ctx, headgate.Ask("slow", "Hi"))
	var late *headgate.DeadlineExceeded
	if !errors.As(err, &late) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("failed as %v", err)
	}
	if call := server.seen(t, "deadline-1", 1)[0]; *call.Timeout > 0.15 {
		t.Errorf("left %v s", *call.Timeout)
	}
}

func TestEveryCallHasADeadlineUnlessItIsToldNotTo(t *testing.T) {
	server, client := start(t)
	_, err := client.Generate(named(t, "default-1"), headgate.Ask("hello", "Hi"))
	_, without := start(t, headgate.WithTimeout(0))
	_, other := without.Generate(named(t, "default-2"), headgate.Ask("hello", "Hi"))
	if err != nil || other != nil {
		t.Fatal(err, other)
	}
	if usual := server.seen(t, "default-1", 1)[0].Timeout; usual == nil || *usual < 590 || *usual > 600 {
		t.Errorf("left %v s", usual)
	}
	if none := server.seen(t, "default-2", 1)[0].Timeout; none != nil {
		t.Errorf("left %v s", *none)
	}
}

type place struct {
	City string `json:"city" jsonschema:"name of the city"`
}

type weather struct {
	City    string `json:"city"`
	Degrees int    `json:"degrees"`
}

func weatherTool(t *testing.T) headgate.Tool {
	tool, err := headgate.FunctionTool("weather", "Weather of a city", func(_ context.Context, in place) (weather, error) {
		if in.City == "Nowhere" {
			return weather{}, errors.New("no such city")
		}
		return weather{in.City, 3}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tool
}

func TestToolLoopRunsCallsAndTellsTheModelOfFailures(t *testing.T) {
	_, client := start(t)
	request := headgate.Ask("tool-loop", "How warm is it?")
	run, err := client.RunTools(t.Context(), request, weatherTool(t))
	if err != nil {
		t.Fatal(err)
	}
	if run.Answer().Text() != "It is 3 degrees." || len(run.Messages) != 4 || len(request.Messages) != 1 {
		t.Errorf("ran to %v", run)
	}
	var failed []bool
	for _, part := range run.Messages[2].Parts {
		failed = append(failed, part.GetToolResult().Failed)
	}
	if !slices.Equal(failed, []bool{false, true, true, true}) {
		t.Errorf("failed: %v", failed)
	}
	if told := run.Messages[2].Parts[0].GetToolResult().StructuredJson; told != `{"city":"Oslo","degrees":3}` {
		t.Errorf("told %s", told)
	}
}

func TestToolLoopIsBoundedAndLeavesToolsOfTheRequestToTheCaller(t *testing.T) {
	_, client := start(t)
	_, err := client.RunTools(t.Context(), headgate.Ask("tool-loop-without-end", "Hi"), weatherTool(t))
	var endless *headgate.TooManyRounds
	if !errors.As(err, &endless) || len(endless.Run.Answers) != headgate.MaxRounds {
		t.Errorf("ended as %v", err)
	}
	request := headgate.Ask("tool-loop-without-end", "Hi")
	request.Tools = append(request.Tools, weatherTool(t).Definition)
	run, err := client.RunTools(t.Context(), request)
	if err != nil || len(run.Answer().ToolCalls()) != 1 {
		t.Errorf("ended as %v", err)
	}
}

func TestJSONComesAsAValueOfTheTypeAndItsSchemaGoesToTheModel(t *testing.T) {
	_, client := start(t)
	format, err := headgate.JSON[weather]("weather")
	if err != nil {
		t.Fatal(err)
	}
	request := headgate.Ask("json", "Weather?")
	request.Config = &headgatev1.GenerationConfig{ResponseFormat: format}
	answer, err := client.Generate(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	var value weather
	if err := answer.Decode(&value); err != nil || value != (weather{"Oslo", 3}) {
		t.Errorf("decoded %v, %v", value, err)
	}
}

func TestWhatIsNotTheJSONAskedForIsInvalidOutputWithTheAnswer(t *testing.T) {
	_, client := start(t)
	for _, model := range []string{"bad-json", "cut-json", "hello"} {
		answer, err := client.Generate(t.Context(), headgate.Ask(model, "Weather?"))
		if err != nil {
			t.Fatal(err)
		}
		var invalid *headgate.InvalidOutput
		if err := answer.Decode(&weather{}); !errors.As(err, &invalid) || invalid.Answer.Text() == "" {
			t.Errorf("%s: decoded with %v", model, err)
		}
	}
}

func TestEmbeddingsOfManyInputsGoInSubBatchesAndComeBackInOrder(t *testing.T) {
	_, client := start(t)
	texts := make([]string, 20_000)
	for i := range texts {
		texts[i] = strconv.Itoa(i)
	}
	embeddings, err := client.Embed(t.Context(), headgate.Texts("embedder", texts...))
	if err != nil {
		t.Fatal(err)
	}
	if len(embeddings.Vectors) != 20_000 || embeddings.Dimensions != 1536 || len(embeddings.RequestIDs) != 20 {
		t.Fatalf("%d vectors by %d calls", len(embeddings.Vectors), len(embeddings.RequestIDs))
	}
	for _, i := range []int{0, 1, 1023, 1024, 19_999} {
		if row := embeddings.Vectors[i]; row[0] != float32(i) || row[1535] != float32(i) {
			t.Errorf("row %d is %v", i, row[:3])
		}
	}
	if embeddings.Usage.GetInputTokens() != 20_000 {
		t.Errorf("used %v", embeddings.Usage)
	}
}

func TestEmbeddingsAreAllOrNothing(t *testing.T) {
	_, client := start(t, headgate.WithEmbedBatch(1, 1))
	_, err := client.Embed(t.Context(), headgate.Texts("embedder-broken", "1", "2", "3"))
	var exhausted *headgate.ProviderQuotaExhausted
	if !errors.As(err, &exhausted) {
		t.Errorf("failed as %v", err)
	}
}

func TestModelsAndHealth(t *testing.T) {
	_, client := start(t)
	models, err := client.Models(t.Context())
	if err != nil || len(models) < 20 {
		t.Errorf("%d models, %v", len(models), err)
	}
	health, err := client.Health(t.Context())
	if err != nil || health.State != headgatev1.ServingState_SERVING_STATE_SERVING {
		t.Errorf("health %v, %v", health, err)
	}
}
