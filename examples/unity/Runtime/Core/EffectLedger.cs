using System;
using System.Collections.Generic;

namespace PersonaChat
{
    /// <summary>
    /// Remembers which actions have been carried out, so that a turn that is seen twice (a retry, a loaded game)
    /// gives its item once. It belongs into the save file, beside what the actions changed. Not for several
    /// threads at once.
    /// </summary>
    public sealed class EffectLedger
    {
        private readonly HashSet<string> _known = new HashSet<string>();
        private readonly List<string> _order = new List<string>();

        /// <summary>Makes a ledger.</summary>
        /// <param name="effectIds">What <see cref="EffectIds"/> was when the game was saved; null for none.</param>
        public EffectLedger(IEnumerable<string> effectIds = null)
        {
            foreach (string effectId in effectIds ?? new string[0])
            {
                Note(effectId);
            }
        }

        /// <summary>What has been carried out, the oldest first.</summary>
        public IReadOnlyList<string> EffectIds => _order;

        /// <summary>Carries out what has not been carried out yet, in order.</summary>
        /// <param name="actions">A turn's actions.</param>
        /// <param name="apply">Carries one out. What it throws passes on, and the action stays open.</param>
        /// <returns>How many were new.</returns>
        public int Apply(IEnumerable<TurnAction> actions, Action<TurnAction> apply)
        {
            int applied = 0;
            foreach (TurnAction action in actions)
            {
                if (_known.Contains(action.EffectId))
                {
                    continue;
                }
                apply(action);
                Note(action.EffectId);
                applied++;
            }
            return applied;
        }

        private void Note(string effectId)
        {
            if (_known.Add(effectId))
            {
                _order.Add(effectId);
            }
        }
    }
}
