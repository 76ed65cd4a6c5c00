#if !UNITY_5_3_OR_NEWER
using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;

namespace PersonaChat.Tests
{
    internal static class ClientTests
    {
        private static readonly TurnRequest Hello = new TurnRequest("Hello.", "npc", "p", turnId: "t1");

        public static void Run()
        {
            Requests();
            Results();
            Streams();
            Retries();
            Refusals();
            OtherCalls();
        }

        private static void Requests()
        {
            var items = new List<string> { "key" };
            var request = new TurnRequest(
                "Hi \"you\"",
                "npc",
                "p",
                new TurnContext
                {
                    QuestStage = "one",
                    Items = items,
                    Trust = 0.5,
                    GameState = new Dictionary<string, JsonValue> { { "door", JsonValue.From(true) } },
                },
                new GenParams { Temperature = 0, Seed = 7 },
                "t1",
                4);
            items.Clear();
            Check.Equal(
                "{\"text\":\"Hi \\\"you\\\"\",\"npc_id\":\"npc\",\"player_id\":\"p\","
                + "\"context\":{\"quest_stage\":\"one\",\"trust\":0.5,\"items\":[\"key\"],\"game_state\":{\"door\":true}},"
                + "\"gen_params\":{\"temperature\":0,\"seed\":7},\"turn_id\":\"t1\",\"expected_version\":4}",
                request.Json.ToString(),
                "a request is written, without what is not given");
            TurnRequest read = TurnRequest.FromJson(JsonValue.Parse(request.Json.ToString()));
            Check.Equal(request.Json.ToString(), read.Json.ToString(), "a request comes back from a save file");
            Check.Equal(4L, read.ExpectedVersion.Value, "with its version");
            var another = new TurnRequest("", "npc", "p");
            Check.Equal(32, another.TurnId.Length, "a turn without an id gets one");
            Check.That(another.TurnId != new TurnRequest("", "npc", "p").TurnId, "of its own");
            var error = Check.Throws<EngineException>(() => new TurnRequest("x", "", "p"), "an NPC without id");
            Check.Equal("npc_id", error.Field, "is named");
        }

        private static void Results()
        {
            TurnResult result = TurnResult.FromJson(JsonValue.Parse(Answers.Result));
            Check.Equal(Answers.Line, result.Text, "a result has its line");
            Check.Equal(-0.05, result.Delta.Relationship, "its delta");
            Check.That(result.Flags["give_item"] && !result.Flags["give_hint"], "its flags");
            Check.Equal("key", result.Actions[0].Value, "its actions");
            Check.That(result.Actions[1].Value == null, "some of them without a value");
            Check.Equal("3 main one two", string.Join(
                " ", result.Version, result.Route, result.QuestStage, result.NextQuestStage), "version and way");
            Check.Equal(7L, result.Meta["seed"].AsLong(), "and everything else");
            Check.Throws<JsonException>(
                () => TurnResult.FromJson(JsonValue.Parse("{\"text\": \"x\"}")), "half a result is none");
        }

        private static void Streams()
        {
            var transport = new FakeTransport().Then(Answers.Whole);
            Check.Equal(
                "state 1,조심히," + Answers.Line + ",=" + Answers.Line,
                Told(transport),
                "the state comes first and once, then the growing line, then the result");
            Check.Equal("http://here/gradio_api/call/v2/ask_stream", transport.Urls[0], "the arguments are posted");
            Check.Equal("http://here/gradio_api/call/ask_stream/e%2F1", transport.Urls[1], "the stream is got");
            string stored = FakeTransport.Event("complete", Answers.Result);
            Check.Equal(
                "state 1," + Answers.Line + ",=" + Answers.Line,
                Told(new FakeTransport().Then(stored)),
                "a stored turn is told in the same order");
            Check.Throws<NotSupportedException>(
                () => Client(new FakeTransport().Then(Answers.Whole))
                    .AskStreamAsync(Hello, state => { throw new NotSupportedException(); }, null)
                    .GetAwaiter().GetResult(),
                "a callback's mistake is not taken for a broken line");
        }

        private static void Retries()
        {
            string busy =
                FakeTransport.Event("generating", Answers.Busy) + FakeTransport.Event("complete", Answers.Busy);
            var transport = new FakeTransport()
                .Then("", 503, "<html>away</html>")
                .Then(null)
                .Then(busy)
                .Then(Answers.Begun + "event: complete\ndata: [{\"te")
                .Then("event: error\ndata: \"404: Not Found\"\n\n")
                .Then("", streamStatus: 502)
                .Then(Answers.Whole);
            string told = Told(transport, new RetryPolicy(7, 100));
            Check.Equal(
                "state 1,조심히," + Answers.Line + ",=" + Answers.Line,
                told,
                "six ways to fail, and each is tried again");
            Check.Equal(7, transport.Bodies.Count, "seven tries");
            Check.Equal(1, transport.Bodies.Distinct().Count(), "of the same turn");
            Check.Equal("100,200,400,800,1600,3200", string.Join(",", transport.DelaysMs), "each wait twice as long");
            Check.Equal(8000, new RetryPolicy(99, 500).DelayMs(99), "to an end");

            transport = new FakeTransport().Then(busy).Then(busy);
            EngineException error = Failure(transport, new RetryPolicy(2));
            Check.That(error.Code == "busy" && error.Retryable && error.Message == "full", "the last failure is told");

            var cancel = new CancellationTokenSource();
            transport = new FakeTransport().Then(busy);
            transport.OnPost = cancel.Cancel;
            Check.Throws<OperationCanceledException>(
                () => Client(transport).AskAsync(Hello, cancel.Token).GetAwaiter().GetResult(),
                "what is cancelled is not tried again");
        }

        private static void Refusals()
        {
            EngineException error = Failure(new FakeTransport().Then(FakeTransport.Event("complete", Answers.Unknown)));
            Check.That(
                error.Code == "unknown_npc" && error.Field == "npc_id" && !error.Retryable, "a refusal is typed");
            error = Failure(new FakeTransport().Then("", 422, Answers.Unknown));
            Check.Equal("unknown_npc", error.Code, "one that answers the post too");
            error = Failure(new FakeTransport().Then("", 404, "<html>"));
            Check.That(error.Code == EngineException.Protocol && !error.Retryable, "another server is told apart");
            error = Failure(new FakeTransport().Then("", 401, "{\"detail\": \"log in\"}"));
            Check.Equal(EngineException.Protocol, error.Code, "one that wants a log-in too");
            error = Failure(new FakeTransport().Then("", 200, "{\"error\": \"plain\"}"));
            Check.Equal(EngineException.Protocol, error.Code, "one whose errors are plain words too");
            error = Failure(new FakeTransport().Then("", 200, "<html>"));
            Check.Equal(EngineException.BadJson, error.Code, "what is no JSON is told");
            error = Failure(new FakeTransport().Then("event: complete\ndata: []\n\n"));
            Check.Equal(EngineException.Protocol, error.Code, "an answer without a value is told");
            Check.Throws<EngineException>(() => new PersonaClient("", new FakeTransport()), "no address is refused");
        }

        private static void OtherCalls()
        {
            var transport = new FakeTransport().Then(FakeTransport.Event("complete", "{\"ready\": true}"));
            JsonValue answer = Client(transport).CallAsync("status").GetAwaiter().GetResult();
            Check.That(answer["ready"].AsBoolean(), "any call can be made");
            Check.Equal("{}", transport.Bodies[0], "without arguments too");
            transport = new FakeTransport().Then(FakeTransport.Event("complete", Answers.Busy));
            Check.Throws<EngineException>(
                () => Client(transport).CallAsync("undo").GetAwaiter().GetResult(),
                "a call without a turn's id is not tried again");
        }

        private static string Told(FakeTransport transport, RetryPolicy retry = null)
        {
            var told = new List<string>();
            TurnResult result = Client(transport, retry).AskStreamAsync(
                Hello,
                state => told.Add("state " + (state.Flags["give_item"] ? 1 : 0)),
                text => told.Add(text)).GetAwaiter().GetResult();
            told.Add("=" + result.Text);
            return string.Join(",", told);
        }

        private static EngineException Failure(FakeTransport transport, RetryPolicy retry = null)
        {
            return Check.Throws<EngineException>(
                () => Client(transport, retry).AskAsync(Hello).GetAwaiter().GetResult(), "an error is thrown");
        }

        private static PersonaClient Client(ITransport transport, RetryPolicy retry = null)
        {
            return new PersonaClient("http://here/", transport, retry);
        }
    }
}
#endif
