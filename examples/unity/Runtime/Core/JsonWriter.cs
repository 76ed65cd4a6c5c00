using System.Collections.Generic;
using System.Globalization;
using System.Text;

namespace PersonaChat
{
    /// <summary>Writes JSON on one line, the same in every culture.</summary>
    public static class JsonWriter
    {
        private const char Replacement = '\uFFFD';

        /// <summary>
        /// Writes a value. Half of a surrogate pair (an input field that is full cuts an emoji in two)
        /// becomes U+FFFD.
        /// </summary>
        /// <param name="value">The value.</param>
        public static string Write(JsonValue value)
        {
            var json = new StringBuilder();
            WriteValue(json, value);
            return json.ToString();
        }

        private static void WriteValue(StringBuilder json, JsonValue value)
        {
            switch (value.Kind)
            {
                case JsonKind.Null:
                    json.Append("null");
                    break;
                case JsonKind.Boolean:
                    json.Append(value.AsBoolean() ? "true" : "false");
                    break;
                case JsonKind.Number:
                    json.Append(value.Digits());
                    break;
                case JsonKind.Text:
                    WriteText(json, value.AsText());
                    break;
                case JsonKind.Array:
                    WriteArray(json, value.Items);
                    break;
                default:
                    WriteObject(json, value.Members);
                    break;
            }
        }

        private static void WriteArray(StringBuilder json, IReadOnlyList<JsonValue> items)
        {
            json.Append('[');
            string between = "";
            foreach (JsonValue item in items)
            {
                json.Append(between);
                WriteValue(json, item);
                between = ",";
            }
            json.Append(']');
        }

        private static void WriteObject(StringBuilder json, IReadOnlyDictionary<string, JsonValue> members)
        {
            json.Append('{');
            string between = "";
            foreach (KeyValuePair<string, JsonValue> member in members)
            {
                json.Append(between);
                WriteText(json, member.Key);
                json.Append(':');
                WriteValue(json, member.Value);
                between = ",";
            }
            json.Append('}');
        }

        private static void WriteText(StringBuilder json, string text)
        {
            json.Append('"');
            for (int i = 0; i < text.Length; i++)
            {
                char unit = text[i];
                if (char.IsHighSurrogate(unit) && i + 1 < text.Length && char.IsLowSurrogate(text[i + 1]))
                {
                    json.Append(unit).Append(text[++i]);
                }
                else if (char.IsSurrogate(unit))
                {
                    json.Append(Replacement);
                }
                else if (unit == '"' || unit == '\\')
                {
                    json.Append('\\').Append(unit);
                }
                else if (unit < ' ')
                {
                    json.Append("\\u").Append(((int)unit).ToString("x4", CultureInfo.InvariantCulture));
                }
                else
                {
                    json.Append(unit);
                }
            }
            json.Append('"');
        }
    }
}
