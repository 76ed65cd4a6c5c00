namespace PersonaChat
{
    /// <summary>How the line is sampled. Whatever stays null is the engine's to choose.</summary>
    public sealed class GenParams
    {
        /// <summary>0 (always the likeliest token) to 2.</summary>
        public double? Temperature { get; set; }

        /// <summary>Above 0, to 1: the share of probability that tokens are drawn from.</summary>
        public double? TopP { get; set; }

        /// <summary>The line's length in tokens, 1 to 256.</summary>
        public int? MaxNewTokens { get; set; }

        /// <summary>1 (none) to 2.</summary>
        public double? RepetitionPenalty { get; set; }

        /// <summary>0 to 2^31 - 1: the same seed and the same request make the same line.</summary>
        public int? Seed { get; set; }

        /// <summary>Returns the parameters as they are sent, without what is null.</summary>
        /// <exception cref="JsonException">A number is not finite.</exception>
        public JsonValue ToJson()
        {
            var members = new Members()
                .Add("temperature", Temperature)
                .Add("top_p", TopP)
                .Add("max_new_tokens", MaxNewTokens)
                .Add("repetition_penalty", RepetitionPenalty)
                .Add("seed", Seed);
            return members.ToJson();
        }
    }
}
