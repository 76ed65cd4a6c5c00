using System;

namespace PersonaChat
{
    // Tells a streamed turn's state once and its text as it grows, over all tries of the turn.
    internal sealed class TurnTeller
    {
        private readonly Action<TurnState> _onState;
        private readonly Action<string> _onText;
        private bool _stateTold;
        private string _text = "";

        public TurnTeller(Action<TurnState> onState, Action<string> onText)
        {
            _onState = onState;
            _onText = onText;
        }

        // A value with delta and no text is the state, one with text alone is the line so far; the whole result has
        // both, comes once more as the answer, and is told by Finish.
        public void OnGenerating(JsonValue value)
        {
            JsonValue text = value.Find("text");
            bool decided = value.Find("delta") != null;
            if (decided && text == null)
            {
                TellState(new TurnState(value));
            }
            else if (text != null && !decided)
            {
                TellText(text.AsText());
            }
        }

        // A turn from the engine's store comes whole and without steps on the way.
        public void Finish(TurnResult result)
        {
            TellState(result);
            TellText(result.Text);
        }

        private void TellState(TurnState state)
        {
            if (_stateTold)
            {
                return;
            }
            _stateTold = true;
            if (_onState != null)
            {
                _onState(state);
            }
        }

        private void TellText(string text)
        {
            if (text == _text)
            {
                return;
            }
            _text = text;
            if (_onText != null)
            {
                _onText(text);
            }
        }
    }
}
