package headgate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/google/jsonschema-go/jsonschema"
	"google.golang.org/protobuf/proto"

	headgatev1 "headgate.dev/go/headgate/v1"
)

// A Tool is something the model may call: how it is told of it, and what runs the call.
type Tool struct {
	Definition *headgatev1.Tool
	// Run gets the call's arguments, JSON or free text. A string goes to the model as text, parts as they are, and
	// everything else as JSON; an error is told to the model as the result of a failed call.
	Run func(ctx context.Context, arguments string) (any, error)
}

// FunctionTool makes a tool of a function. The schema of its arguments is that of the struct In: names by `json` tags,
// descriptions by `jsonschema` tags, fields without omitempty required.
func FunctionTool[In, Out any](name, description string, run func(context.Context, In) (Out, error)) (Tool, error) {
	schema, err := schemaOf[In]()
	if err != nil {
		return Tool{}, fmt.Errorf("headgate: tool %s: %w", name, err)
	}
	function := &headgatev1.FunctionTool{Name: name, Description: description, ParametersSchema: schema}
	definition := &headgatev1.Tool{Kind: &headgatev1.Tool_Function{Function: function}}
	return Tool{definition, func(ctx context.Context, arguments string) (any, error) {
		var in In
		if err := json.Unmarshal([]byte(arguments), &in); err != nil {
			return nil, fmt.Errorf("the arguments do not fit the schema: %w", err)
		}
		return run(ctx, in)
	}}, nil
}

// FreeTextTool makes a tool of a function that takes any text.
func FreeTextTool[Out any](name, description string, run func(context.Context, string) (Out, error)) Tool {
	function := &headgatev1.FreeTextTool{Name: name, Description: description}
	definition := &headgatev1.Tool{Kind: &headgatev1.Tool_FreeText{FreeText: function}}
	return Tool{definition, func(ctx context.Context, arguments string) (any, error) { return run(ctx, arguments) }}
}

// JSON asks for text that is JSON of the type T, which [Answer.Decode] reads.
func JSON[T any](name string) (*headgatev1.ResponseFormat, error) {
	schema, err := schemaOf[T]()
	if err != nil {
		return nil, fmt.Errorf("headgate: %s: %w", name, err)
	}
	return &headgatev1.ResponseFormat{
		Type:   headgatev1.ResponseFormatType_RESPONSE_FORMAT_TYPE_JSON_SCHEMA,
		Name:   name,
		Schema: schema,
		Strict: proto.Bool(true),
	}, nil
}

// MaxRounds is how often [Client.RunTools] asks the model at most.
const MaxRounds = 10

// ToolRun is a conversation that has come to its last answer.
type ToolRun struct {
	// Messages are the whole conversation, the last answer included.
	Messages []*headgatev1.Message
	// Answers are those of all rounds, each with its usage.
	Answers []*Answer
}

// Answer returns the last answer.
func (r *ToolRun) Answer() *Answer { return r.Answers[len(r.Answers)-1] }

// TooManyRounds means that the model still calls tools after [MaxRounds]; Run is the conversation so far.
type TooManyRounds struct{ Run *ToolRun }

func (e *TooManyRounds) Error() string {
	return fmt.Sprintf("headgate: the model still calls tools after %d rounds", len(e.Run.Answers))
}

// RunTools generates, runs the tools that the model calls, several at once, tells it their results, and so on, until it
// answers without a call that one of them can answer. Answers go into the history as they came, so that reasoning and
// signatures go back byte for byte.
func (c *Client) RunTools(ctx context.Context, request *headgatev1.GenerateRequest, tools ...Tool) (*ToolRun, error) {
	request = proto.CloneOf(request)
	byName := map[string]Tool{}
	for _, tool := range tools {
		request.Tools = append(request.Tools, tool.Definition)
		byName[nameOf(tool.Definition)] = tool
	}
	run := &ToolRun{}
	for range MaxRounds {
		answer, err := c.Generate(ctx, request)
		if err != nil {
			return nil, err
		}
		run.Answers = append(run.Answers, answer)
		if message := answer.Message(); message != nil {
			request.Messages = append(request.Messages, message)
		}
		run.Messages = request.Messages
		if answer.FinishReason() == headgatev1.FinishReason_FINISH_REASON_PAUSE {
			continue
		}
		calls := answer.ToolCalls()
		if len(calls) == 0 || !answer.isWhole() || leavesCalls(calls, request.Tools, byName) {
			return run, nil
		}
		results := &headgatev1.Message{Role: headgatev1.Role_ROLE_TOOL, Parts: make([]*headgatev1.Part, len(calls))}
		var running sync.WaitGroup
		for i, call := range calls {
			running.Go(func() { results.Parts[i] = resultOf(ctx, call, byName) })
		}
		running.Wait()
		request.Messages = append(request.Messages, results)
	}
	return nil, &TooManyRounds{run}
}

// leavesCalls says that the request declares a called tool which is not run here.
func leavesCalls(calls []*headgatev1.ToolCall, declared []*headgatev1.Tool, run map[string]Tool) bool {
	return slices.ContainsFunc(calls, func(call *headgatev1.ToolCall) bool {
		_, known := run[call.Name]
		return !known && slices.ContainsFunc(declared, func(tool *headgatev1.Tool) bool { return nameOf(tool) == call.Name })
	})
}

func nameOf(tool *headgatev1.Tool) string {
	return tool.GetFunction().GetName() + tool.GetFreeText().GetName()
}

func resultOf(ctx context.Context, call *headgatev1.ToolCall, tools map[string]Tool) *headgatev1.Part {
	result := &headgatev1.ToolResult{CallId: call.Id, Name: call.Name}
	value, err := runTool(ctx, call, tools)
	if err != nil {
		result.Failed = true
		result.Parts = []*headgatev1.Part{Text(err.Error())}
	} else {
		result.Parts, result.StructuredJson = value.parts, value.json
	}
	return &headgatev1.Part{Content: &headgatev1.Part_ToolResult{ToolResult: result}}
}

type toolValue struct {
	parts []*headgatev1.Part
	json  string
}

func runTool(ctx context.Context, call *headgatev1.ToolCall, tools map[string]Tool) (toolValue, error) {
	tool, known := tools[call.Name]
	if !known {
		return toolValue{}, fmt.Errorf("there is no tool %q", call.Name)
	}
	value, err := tool.Run(ctx, call.Arguments)
	if err != nil {
		return toolValue{}, err
	}
	switch value := value.(type) {
	case string:
		return toolValue{parts: []*headgatev1.Part{Text(value)}}, nil
	case *headgatev1.Part:
		return toolValue{parts: []*headgatev1.Part{value}}, nil
	case []*headgatev1.Part:
		return toolValue{parts: value}, nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		return toolValue{}, fmt.Errorf("the result cannot be told: %w", err)
	}
	return toolValue{[]*headgatev1.Part{Text(string(text))}, string(text)}, nil
}

func schemaOf[T any]() (string, error) {
	schema, err := jsonschema.For[T](nil)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(schema)
	return string(text), err
}
