using System;

namespace PersonaChat
{
    /// <summary>
    /// One utterance of one player to one NPC. It never changes: sending the same object again asks for the same
    /// turn, which the engine plays once and then answers from its store.
    /// </summary>
    public sealed class TurnRequest
    {
        /// <summary>Makes a request. The context and the parameters are copied.</summary>
        /// <param name="text">What the player says.</param>
        /// <param name="npcId">The NPC's id, 1 to 64 characters.</param>
        /// <param name="playerId">The player's id, 1 to 128 characters.</param>
        /// <param name="context">What the game knows; null leaves it all to the session.</param>
        /// <param name="genParams">How the line is sampled; null leaves it to the engine.</param>
        /// <param name="turnId">1 to 128 characters, new for each turn; null makes one up.</param>
        /// <param name="expectedVersion">
        /// The session's version that the game decided by: where the session has moved on, the turn is refused with
        /// the code "conflict". Null plays it at any version.
        /// </param>
        /// <exception cref="EngineException">The NPC's or the player's id is empty, or the text null.</exception>
        public TurnRequest(
            string text,
            string npcId,
            string playerId,
            TurnContext context = null,
            GenParams genParams = null,
            string turnId = null,
            long? expectedVersion = null)
            : this(
                new Members()
                    .Add("text", text)
                    .Add("npc_id", npcId)
                    .Add("player_id", playerId)
                    .Add("context", context == null ? null : context.ToJson())
                    .Add("gen_params", genParams == null ? null : genParams.ToJson())
                    .Add("turn_id", string.IsNullOrEmpty(turnId) ? Guid.NewGuid().ToString("N") : turnId)
                    .Add("expected_version", expectedVersion)
                    .ToJson())
        {
        }

        private TurnRequest(JsonValue json)
        {
            Json = json;
            Text = Given(json, "text", emptyToo: true);
            NpcId = Given(json, "npc_id");
            PlayerId = Given(json, "player_id");
            TurnId = Given(json, "turn_id");
            JsonValue version = json.Find("expected_version");
            ExpectedVersion = version == null ? (long?)null : version.AsLong();
        }

        /// <summary>What the player says.</summary>
        public string Text { get; }

        /// <summary>The NPC's id.</summary>
        public string NpcId { get; }

        /// <summary>The player's id.</summary>
        public string PlayerId { get; }

        /// <summary>The turn's own id; never empty.</summary>
        public string TurnId { get; }

        /// <summary>The session's version that the game decided by; null for any.</summary>
        public long? ExpectedVersion { get; }

        /// <summary>The whole request as it is sent, context and parameters included.</summary>
        public JsonValue Json { get; }

        /// <summary>Reads a request that a save file keeps because it has not been answered yet.</summary>
        /// <param name="json">What <see cref="Json"/> was.</param>
        /// <exception cref="EngineException">It is no request.</exception>
        public static TurnRequest FromJson(JsonValue json)
        {
            return new TurnRequest(json);
        }

        private static string Given(JsonValue json, string name, bool emptyToo = false)
        {
            JsonValue value = json.Find(name);
            string text = value == null ? null : value.AsText();
            if (text == null || (text.Length == 0 && !emptyToo))
            {
                throw new EngineException(
                    EngineException.InvalidRequest, name + ": must be a text", false, name);
            }
            return text;
        }
    }
}
