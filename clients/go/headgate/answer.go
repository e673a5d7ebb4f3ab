package headgate

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	headgatev1 "headgate.dev/go/headgate/v1"
)

// An Answer is a whole answer, with the request id under which the server's log has it.
type Answer struct {
	*headgatev1.GenerateResponse
	RequestID string
}

// Message returns the first candidate's message, as it goes back into the conversation; nil when there is none.
func (a *Answer) Message() *headgatev1.Message {
	if len(a.Candidates) == 0 {
		return nil
	}
	return a.Candidates[0].Message
}

// Text returns the first candidate's text, its parts joined.
func (a *Answer) Text() string {
	var text strings.Builder
	for _, part := range a.Message().GetParts() {
		text.WriteString(part.GetText())
	}
	return text.String()
}

// ToolCalls returns the calls that the first candidate leaves to the caller, in order.
func (a *Answer) ToolCalls() []*headgatev1.ToolCall {
	var calls []*headgatev1.ToolCall
	for _, part := range a.Message().GetParts() {
		call := part.GetToolCall()
		if call != nil && call.Kind != headgatev1.ToolCallKind_TOOL_CALL_KIND_PROVIDER_EXECUTED {
			calls = append(calls, call)
		}
	}
	return calls
}

// FinishReason says why the first candidate ended. A refusal or content filter stands here and is no error.
func (a *Answer) FinishReason() headgatev1.FinishReason {
	if len(a.Candidates) == 0 {
		return headgatev1.FinishReason_FINISH_REASON_UNSPECIFIED
	}
	return a.Candidates[0].Finish.GetReason()
}

// Decode reads the text as JSON into value; [InvalidOutput] says what hinders.
func (a *Answer) Decode(value any) error {
	if !a.isWhole() {
		return &InvalidOutput{Answer: a, Cause: fmt.Errorf("it ended by %s", a.FinishReason())}
	}
	if err := json.Unmarshal([]byte(a.Text()), value); err != nil {
		return &InvalidOutput{Answer: a, Cause: err}
	}
	return nil
}

// isWhole says that the model ended the first candidate by itself.
func (a *Answer) isWhole() bool {
	switch a.FinishReason() {
	case headgatev1.FinishReason_FINISH_REASON_UNSPECIFIED, headgatev1.FinishReason_FINISH_REASON_STOP,
		headgatev1.FinishReason_FINISH_REASON_TOOL_CALLS, headgatev1.FinishReason_FINISH_REASON_OTHER:
		return !slices.ContainsFunc(a.Message().GetParts(), (*headgatev1.Part).GetIncomplete)
	}
	return false
}

// InvalidOutput is an answer whose text is not the JSON that was asked for: cut off, refused, or of another shape.
type InvalidOutput struct {
	Answer *Answer
	Cause  error
}

func (e *InvalidOutput) Error() string {
	return fmt.Sprintf("headgate: the answer is not the JSON asked for: %v", e.Cause)
}

func (e *InvalidOutput) Unwrap() error { return e.Cause }
