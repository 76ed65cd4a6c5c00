namespace PersonaChat
{
    /// <summary>Text that is no JSON, or a JSON value of another kind than was asked for.</summary>
    public sealed class JsonException : EngineException
    {
        /// <summary>Makes an error.</summary>
        /// <param name="message">What is wrong.</param>
        /// <param name="position">Where in the text, in UTF-16 units from 0; -1 where there is no text.</param>
        public JsonException(string message, int position = -1)
            : base(BadJson, position < 0 ? message : message + " (at " + position + ")", false)
        {
            Position = position;
        }

        /// <summary>Where in the text, in UTF-16 units from 0; -1 where there is no text.</summary>
        public int Position { get; }
    }
}
