// A talk on the console: three turns, one of them streamed, one sent twice, and an error. It checks what it gets.
//
//     mono PersonaChat.Console.exe [URL] [NPC] [PLAYER]
//
// The exit code is 0 where all was as it should be, else 1.
#if !UNITY_5_3_OR_NEWER
using System;
using System.Collections.Generic;
using System.Text;
using System.Threading.Tasks;

namespace PersonaChat.ConsoleHost
{
    internal sealed class Program
    {
        private readonly PersonaClient _client;
        private readonly string _npcId;
        private readonly string _playerId;
        private readonly EffectLedger _ledger = new EffectLedger();

        // What the player has. The game names it; what an action gives joins it.
        private readonly List<string> _items = new List<string> { "photo_forgotten_party" };

        private Program(string url, string npcId, string playerId)
        {
            _client = new PersonaClient(
                url, new HttpWebRequestTransport(), new RetryPolicy(tries: 3, firstDelayMs: 200));
            _npcId = npcId;
            _playerId = playerId;
        }

        private static int Main(string[] arguments)
        {
            Console.OutputEncoding = new UTF8Encoding(false);
            try
            {
                var program = new Program(
                    Argument(arguments, 0, "http://127.0.0.1:7860"),
                    Argument(arguments, 1, "mother_abandoned_factory"),
                    Argument(arguments, 2, "player-" + Guid.NewGuid().ToString("N")));
                program.TalkAsync().GetAwaiter().GetResult();
                Console.WriteLine("All was as it should be.");
                return 0;
            }
            catch (EngineException error)
            {
                Console.Error.WriteLine("{0}: {1}", error.Code, error.Message);
                return 1;
            }
        }

        private static string Argument(string[] arguments, int index, string otherwise)
        {
            return arguments.Length > index ? arguments[index] : otherwise;
        }

        private async Task TalkAsync()
        {
            TurnResult first = await AskAsync(Request("Good evening. May I come in out of the rain?"));
            TurnRequest request = Request("I found this photograph. Is this Jason?", first.Version);
            TurnResult second = await StreamAsync(request);
            Check(second.Version == first.Version + 1, "a turn makes the version one higher");
            TurnResult third = await AskAsync(Request("조심히 갈게요. 🙂 Thank you, and good night.", second.Version));
            await RepeatAsync(request, second);
            await MeetNobodyAsync();
            JsonValue session = await _client.CallAsync("session", PlayerAndNpc());
            Check(session["version"].AsLong() == third.Version, "the session stands where the last turn left it");
        }

        private TurnRequest Request(string text, long? expectedVersion = null)
        {
            var context = new TurnContext
            {
                QuestStage = "in_progress",
                Items = _items,
                Actions = new[] { "visited_factory" },
                Trust = 0.45,
                Relationship = 0.4,
            };
            var sampling = new GenParams { MaxNewTokens = 40, Seed = 7 };
            return new TurnRequest(
                text, _npcId, _playerId, context, sampling, expectedVersion: expectedVersion);
        }

        private async Task<TurnResult> AskAsync(TurnRequest request)
        {
            Console.WriteLine("You:  {0}", request.Text);
            TurnResult result = await _client.AskAsync(request);
            Console.WriteLine("NPC:  {0}", result.Text);
            Tell(request, result);
            return result;
        }

        private async Task<TurnResult> StreamAsync(TurnRequest request)
        {
            var told = new List<string>();
            Console.WriteLine("You:  {0}", request.Text);
            TurnResult result = await _client.AskStreamAsync(
                request,
                state =>
                {
                    Console.WriteLine("      decided: {0}", Decided(state));
                    Check(told.Count == 0, "the state comes once, before the first word");
                    told.Add("");
                },
                text =>
                {
                    Console.WriteLine("NPC…  {0}", text);
                    told.Add(text);
                });
            Check(told.Count > 1, "the line is told");
            Check(told[told.Count - 1] == result.Text, "the line that has grown is the line of the answer");
            Tell(request, result);
            return result;
        }

        private void Tell(TurnRequest request, TurnResult result)
        {
            Check(result.TurnId == request.TurnId, "the answer is that of the turn");
            Check(result.Text.Length > 0, "the NPC says something");
            Console.WriteLine("      route {0}, version {1}, {2}", result.Route, result.Version, Decided(result));
            int applied = _ledger.Apply(result.Actions, Carry);
            Check(applied == result.Actions.Count, "what a new turn grants is new");
        }

        private void Carry(TurnAction action)
        {
            Console.WriteLine("      granted: {0} {1}", action.Flag, action.Text);
            if (action.Flag == "give_item" && action.Value != null && !_items.Contains(action.Value))
            {
                _items.Add(action.Value);
            }
        }

        private static string Decided(TurnState state)
        {
            return string.Format(
                System.Globalization.CultureInfo.InvariantCulture,
                "trust {0:+0.000;-0.000;0} to {1:0.000}, relationship {2:+0.000;-0.000;0} to {3:0.000}",
                state.Delta.Trust,
                state.State.Trust,
                state.Delta.Relationship,
                state.State.Relationship);
        }

        // As after a line that broke: the same turn is the same answer, and its effects have happened.
        private async Task RepeatAsync(TurnRequest request, TurnResult known)
        {
            TurnResult again = await _client.AskAsync(request);
            Check(again.Version == known.Version && again.Text == known.Text, "a turn sent twice is played once");
            Check(_ledger.Apply(again.Actions, Carry) == 0, "an action happens once");
            Console.WriteLine("The second turn, sent again, was the same; nothing happened twice.");
        }

        private async Task MeetNobodyAsync()
        {
            try
            {
                await _client.AskAsync(new TurnRequest("Hello?", "nobody", _playerId));
            }
            catch (EngineException error)
            {
                Console.WriteLine("Refused: {0} ({1}, field {2})", error.Message, error.Code, error.Field);
                Check(error.Code == "unknown_npc", "an unknown NPC has its own code");
                Check(error.Field == "npc_id" && !error.Retryable, "the error names its field and is final");
                return;
            }
            Check(false, "an unknown NPC is refused");
        }

        private Dictionary<string, JsonValue> PlayerAndNpc()
        {
            return new Dictionary<string, JsonValue>
            {
                { "player_id", JsonValue.From(_playerId) },
                { "npc_id", JsonValue.From(_npcId) },
            };
        }

        private static void Check(bool holds, string what)
        {
            if (!holds)
            {
                throw new EngineException("check_failed", "it does not hold that " + what, false);
            }
        }
    }
}
#endif
