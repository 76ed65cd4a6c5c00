#if !UNITY_5_3_OR_NEWER
using System;
using System.Collections.Generic;

namespace PersonaChat.Tests
{
    internal static class LedgerTests
    {
        public static void Run()
        {
            IReadOnlyList<TurnAction> actions = TurnResult.FromJson(JsonValue.Parse(Answers.Result)).Actions;
            var applied = new List<string>();
            Action<TurnAction> apply = action => applied.Add(action.Flag);
            var ledger = new EffectLedger();
            Check.Equal(2, ledger.Apply(actions, apply), "new actions happen");
            Check.Equal(0, ledger.Apply(actions, apply), "and do not happen again");
            Check.Equal("give_item,npc_action", string.Join(",", applied), "each once, in order");

            var loaded = new EffectLedger(ledger.EffectIds);
            Check.Equal(0, loaded.Apply(actions, apply), "nor after loading");
            Check.Equal("e1,e2", string.Join(",", loaded.EffectIds), "a loaded ledger is saved alike");
            Check.Equal(1, new EffectLedger(new[] { "e1", "e1" }).EffectIds.Count, "an id is kept once");

            var open = new EffectLedger();
            Check.Throws<NotSupportedException>(
                () => open.Apply(actions, action => { throw new NotSupportedException(); }), "a failure passes on");
            Check.Equal(2, open.Apply(actions, apply), "and the action stays open");
        }
    }
}
#endif
