using System.Collections.Generic;
using System.Linq;

namespace PersonaChat
{
    /// <summary>A change, or a standing, of trust and relationship.</summary>
    public struct Standing
    {
        /// <summary>Makes a pair.</summary>
        /// <param name="trust">From -1 to 1.</param>
        /// <param name="relationship">From -1 to 1.</param>
        public Standing(double trust, double relationship)
        {
            Trust = trust;
            Relationship = relationship;
        }

        /// <summary>How far the NPC trusts the player, from -1 to 1.</summary>
        public double Trust { get; }

        /// <summary>How close the NPC is to the player, from -1 to 1.</summary>
        public double Relationship { get; }

        internal static Standing FromJson(JsonValue json)
        {
            return new Standing(json["trust"].AsDouble(), json["relationship"].AsDouble());
        }
    }

    /// <summary>What a fired flag means in this game: something to carry out, once.</summary>
    public sealed class TurnAction
    {
        internal TurnAction(JsonValue json)
        {
            Flag = json["flag"].AsText();
            JsonValue value = json.Find("value");
            Value = value == null ? null : value.AsText();
            Text = json["text"].AsText();
            EffectId = json["effect_id"].AsText();
        }

        /// <summary>The flag that fired: "give_item", "unlock_hidden_path", …</summary>
        public string Flag { get; }

        /// <summary>What it is about ("gold_necklace"), for programs; null where the file names nothing.</summary>
        public string Value { get; }

        /// <summary>What happens, for people; "" where the file says nothing.</summary>
        public string Text { get; }

        /// <summary>The same on every retry of the turn; see <see cref="EffectLedger"/>.</summary>
        public string EffectId { get; }
    }

    /// <summary>
    /// What a turn decided. Told before the first word it is good for a face and a gesture; the engine stores the
    /// turn with its last word, so actions are to be carried out when the whole answer is there.
    /// </summary>
    public class TurnState
    {
        internal TurnState(JsonValue json)
        {
            Delta = Standing.FromJson(json["delta"]);
            Flags = json["flags"].Members.ToDictionary(flag => flag.Key, flag => flag.Value.AsBoolean());
            Meta = json["meta"];
            TurnId = Meta["turn_id"].AsText();
            Version = Meta["version"].AsLong();
            Route = Meta["route"].AsText();
            QuestStage = Meta["quest_stage"].AsText();
            NextQuestStage = Meta["next_quest_stage"].AsText();
            State = Standing.FromJson(Meta["state"]);
            Actions = Meta["actions"].Items.Select(action => new TurnAction(action)).ToList();
        }

        /// <summary>How much the turn changed trust and relationship.</summary>
        public Standing Delta { get; }

        /// <summary>Whether each flag fired.</summary>
        public IReadOnlyDictionary<string, bool> Flags { get; }

        /// <summary>What the fired flags mean, in the order in which to carry it out.</summary>
        public IReadOnlyList<TurnAction> Actions { get; }

        /// <summary>The turn's id, as it was sent.</summary>
        public string TurnId { get; }

        /// <summary>The session's version after the turn, for the next request's expectedVersion.</summary>
        public long Version { get; }

        /// <summary>The path that the turn took: "main", "forbidden", "invalid" or "degraded".</summary>
        public string Route { get; }

        /// <summary>The stage in which the turn was played.</summary>
        public string QuestStage { get; }

        /// <summary>The stage after it.</summary>
        public string NextQuestStage { get; }

        /// <summary>Trust and relationship after the turn.</summary>
        public Standing State { get; }

        /// <summary>Everything else: reasons, probabilities, seed, milliseconds and more.</summary>
        public JsonValue Meta { get; }
    }

    /// <summary>The answer to a turn.</summary>
    public sealed class TurnResult : TurnState
    {
        private TurnResult(JsonValue json)
            : base(json)
        {
            Text = json["text"].AsText();
        }

        /// <summary>The NPC's line.</summary>
        public string Text { get; }

        /// <summary>Reads an answer.</summary>
        /// <param name="answer">The answer of "ask", or the last of "ask_stream".</param>
        /// <exception cref="JsonException">It is no such answer; an {"error": …} is none either.</exception>
        public static TurnResult FromJson(JsonValue answer)
        {
            return new TurnResult(answer);
        }
    }
}
