using System.Collections.Generic;

namespace PersonaChat
{
    /// <summary>
    /// What the game says about its state. Whatever stays null comes from the session, then from the NPC's file.
    /// </summary>
    public sealed class TurnContext
    {
        /// <summary>The stage of the NPC's quest; null leaves it to the session.</summary>
        public string QuestStage { get; set; }

        /// <summary>Where the talk takes place.</summary>
        public string Location { get; set; }

        /// <summary>The NPC's mood.</summary>
        public string NpcMood { get; set; }

        /// <summary>What people say of the player.</summary>
        public string PlayerReputation { get; set; }

        /// <summary>How the NPC speaks.</summary>
        public string Style { get; set; }

        /// <summary>How far the NPC trusts the player, from -1 to 1.</summary>
        public double? Trust { get; set; }

        /// <summary>How close the NPC is to the player, from -1 to 1.</summary>
        public double? Relationship { get; set; }

        /// <summary>What the player carries, by the names that the NPC's file uses.</summary>
        public IEnumerable<string> Items { get; set; }

        /// <summary>What the player has done, by the names that the NPC's file uses.</summary>
        public IEnumerable<string> Actions { get; set; }

        /// <summary>Facts of the game's world: numbers, booleans and texts by name.</summary>
        public IDictionary<string, JsonValue> GameState { get; set; }

        /// <summary>"en" or "ko"; without it the language of the utterance decides.</summary>
        public string Language { get; set; }

        /// <summary>Returns the context as it is sent, without what is null.</summary>
        /// <exception cref="JsonException">A number is not finite.</exception>
        public JsonValue ToJson()
        {
            var members = new Members()
                .Add("quest_stage", QuestStage)
                .Add("location", Location)
                .Add("npc_mood", NpcMood)
                .Add("player_reputation", PlayerReputation)
                .Add("style", Style)
                .Add("trust", Trust)
                .Add("relationship", Relationship)
                .Add("items", Items == null ? null : JsonValue.From(Items))
                .Add("actions", Actions == null ? null : JsonValue.From(Actions))
                .Add("game_state", GameState == null ? null : JsonValue.From(GameState))
                .Add("language", Language);
            return members.ToJson();
        }
    }
}
