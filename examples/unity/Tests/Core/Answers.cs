#if !UNITY_5_3_OR_NEWER
namespace PersonaChat.Tests
{
    // Answers of the engine, as short as they may be.
    internal static class Answers
    {
        public const string Line = "조심히 들어오세요. 🙂";

        public const string Busy =
            "{\"error\": {\"code\": \"busy\", \"message\": \"full\", \"retryable\": true, \"field\": null}}";

        public const string Unknown =
            "{\"error\": {\"code\": \"unknown_npc\", \"message\": \"no such NPC\", \"retryable\": false,"
            + " \"field\": \"npc_id\"}}";

        private const string Rest =
            "\"delta\": {\"trust\": 0.1, \"relationship\": -0.05},"
            + " \"flags\": {\"give_item\": true, \"give_hint\": false},"
            + " \"meta\": {\"turn_id\": \"t1\", \"version\": 3, \"route\": \"main\", \"quest_stage\": \"one\","
            + " \"next_quest_stage\": \"two\", \"state\": {\"trust\": 0.4, \"relationship\": 0.2}, \"seed\": 7,"
            + " \"actions\": [{\"flag\": \"give_item\", \"value\": \"key\", \"text\": \"A key.\","
            + " \"source\": \"exact\", \"effect_id\": \"e1\"}, {\"flag\": \"npc_action\", \"value\": null,"
            + " \"text\": \"\", \"source\": \"none\", \"effect_id\": \"e2\"}]}}";

        public const string State = "{" + Rest;
        public const string Result = "{\"text\": \"" + Line + "\", " + Rest;

        public static readonly string Begun =
            FakeTransport.Event("generating", State)
            + "event: heartbeat\ndata: null\n\n"
            + FakeTransport.Event("generating", "{\"text\": \"조심히\"}");

        public static readonly string Whole =
            Begun
            + FakeTransport.Event("generating", "{\"text\": \"" + Line + "\"}")
            + FakeTransport.Event("generating", Result)
            + FakeTransport.Event("complete", Result);
    }
}
#endif
