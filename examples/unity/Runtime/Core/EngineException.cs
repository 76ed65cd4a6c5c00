using System;

namespace PersonaChat
{
    /// <summary>
    /// The one error of this library: what the engine refused, or why no answer came. Cancelling is told by
    /// <see cref="OperationCanceledException"/>, as everywhere in .NET.
    /// </summary>
    public class EngineException : Exception
    {
        /// <summary>Code of an engine that could not be reached, or whose line broke. Retryable.</summary>
        public const string Unreachable = "unreachable";

        /// <summary>Code of an answer that is none of this engine's: a wrong address, most often.</summary>
        public const string Protocol = "protocol";

        /// <summary>Code of text that is no JSON; see <see cref="JsonException"/>.</summary>
        public const string BadJson = "bad_json";

        /// <summary>Code of input that can never succeed as it stands.</summary>
        public const string InvalidRequest = "invalid_request";

        /// <summary>Makes an error.</summary>
        /// <param name="code">The engine's code ("unknown_npc", "busy", …) or one of the constants here.</param>
        /// <param name="message">One or two plain sentences.</param>
        /// <param name="retryable">True where the same turn, sent again with its turn id, may succeed.</param>
        /// <param name="field">Dotted path of the offending input ("context.trust"), or null.</param>
        /// <param name="inner">What caused it, or null.</param>
        public EngineException(
            string code, string message, bool retryable, string field = null, Exception inner = null)
            : base(message, inner)
        {
            Code = code;
            Retryable = retryable;
            Field = field;
        }

        /// <summary>What kind of error it is, for programs; the message is for people.</summary>
        public string Code { get; }

        /// <summary>True where the same turn, sent again with its turn id, may succeed.</summary>
        public bool Retryable { get; }

        /// <summary>Dotted path of the offending input ("context.trust"); null where there is none.</summary>
        public string Field { get; }

        /// <summary>Reads an answer's {"error": …}.</summary>
        /// <param name="answer">The answer to a call.</param>
        /// <returns>The error, or null where the answer is none.</returns>
        /// <exception cref="JsonException">The error lacks its code, message or retryable.</exception>
        public static EngineException FromAnswer(JsonValue answer)
        {
            if (answer.Kind != JsonKind.Object)
            {
                return null;
            }
            JsonValue error = answer.Find("error");
            if (error == null)
            {
                return null;
            }
            if (error.Kind != JsonKind.Object)
            {
                return new EngineException(Protocol, "the server says " + error, false);
            }
            JsonValue field = error.Find("field");
            return new EngineException(
                error["code"].AsText(),
                error["message"].AsText(),
                error["retryable"].AsBoolean(),
                field == null ? null : field.AsText());
        }
    }
}
