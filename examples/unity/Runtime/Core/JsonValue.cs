using System.Collections.Generic;
using System.Globalization;
using System.Linq;

namespace PersonaChat
{
    /// <summary>The kinds of JSON values.</summary>
    public enum JsonKind
    {
        /// <summary>null</summary>
        Null,

        /// <summary>true or false</summary>
        Boolean,

        /// <summary>A number, kept as it was written.</summary>
        Number,

        /// <summary>A text.</summary>
        Text,

        /// <summary>A list of values.</summary>
        Array,

        /// <summary>Values by name.</summary>
        Object,
    }

    /// <summary>
    /// A JSON value, which never changes. Unity's JsonUtility reads neither dictionaries nor fields that it
    /// was not told of, and an answer has both.
    /// </summary>
    public sealed class JsonValue
    {
        /// <summary>null</summary>
        public static readonly JsonValue Null = new JsonValue(JsonKind.Null, null);

        // A bool, a string (a text, or a number's digits), a list or a dictionary.
        private readonly object _data;

        private JsonValue(JsonKind kind, object data)
        {
            Kind = kind;
            _data = data;
        }

        /// <summary>What kind of value it is.</summary>
        public JsonKind Kind { get; }

        /// <summary>The values of an array.</summary>
        /// <exception cref="JsonException">It is no array.</exception>
        public IReadOnlyList<JsonValue> Items => (List<JsonValue>)Data(JsonKind.Array);

        /// <summary>The values of an object by name.</summary>
        /// <exception cref="JsonException">It is no object.</exception>
        public IReadOnlyDictionary<string, JsonValue> Members =>
            (Dictionary<string, JsonValue>)Data(JsonKind.Object);

        /// <summary>Returns a member of an object.</summary>
        /// <param name="name">The member's name.</param>
        /// <exception cref="JsonException">It is no object, or has no such member.</exception>
        public JsonValue this[string name]
        {
            get
            {
                JsonValue value;
                if (!Members.TryGetValue(name, out value))
                {
                    throw new JsonException("the member '" + name + "' is missing");
                }
                return value;
            }
        }

        /// <summary>Makes a text; null makes <see cref="Null"/>.</summary>
        /// <param name="text">The text.</param>
        public static JsonValue From(string text)
        {
            return text == null ? Null : new JsonValue(JsonKind.Text, text);
        }

        /// <summary>Makes true or false.</summary>
        /// <param name="value">Which of them.</param>
        public static JsonValue From(bool value)
        {
            return new JsonValue(JsonKind.Boolean, value);
        }

        /// <summary>Makes a whole number.</summary>
        /// <param name="value">The number.</param>
        public static JsonValue From(long value)
        {
            return new JsonValue(JsonKind.Number, value.ToString(CultureInfo.InvariantCulture));
        }

        /// <summary>Makes a number.</summary>
        /// <param name="value">The number.</param>
        /// <exception cref="JsonException">It is not finite: JSON has no such numbers.</exception>
        public static JsonValue From(double value)
        {
            if (double.IsNaN(value) || double.IsInfinity(value))
            {
                throw new JsonException("JSON has no number that is not finite");
            }
            return new JsonValue(JsonKind.Number, value.ToString("R", CultureInfo.InvariantCulture));
        }

        /// <summary>Makes an array.</summary>
        /// <param name="items">Its values, which are copied.</param>
        public static JsonValue From(IEnumerable<JsonValue> items)
        {
            return new JsonValue(JsonKind.Array, items.ToList());
        }

        /// <summary>Makes an array of texts.</summary>
        /// <param name="texts">The texts, which are copied.</param>
        public static JsonValue From(IEnumerable<string> texts)
        {
            return From(texts.Select(text => From(text)));
        }

        /// <summary>Makes an object.</summary>
        /// <param name="members">Its values by name, which are copied.</param>
        public static JsonValue From(IDictionary<string, JsonValue> members)
        {
            return new JsonValue(JsonKind.Object, new Dictionary<string, JsonValue>(members));
        }

        /// <summary>Reads a value from JSON; see <see cref="JsonReader"/>.</summary>
        /// <param name="json">One JSON value and nothing else.</param>
        /// <exception cref="JsonException">It is no JSON.</exception>
        public static JsonValue Parse(string json)
        {
            return JsonReader.Read(json);
        }

        /// <summary>Returns a member of an object, or null where it is missing or JSON's null.</summary>
        /// <param name="name">The member's name.</param>
        /// <exception cref="JsonException">It is no object.</exception>
        public JsonValue Find(string name)
        {
            JsonValue value;
            return Members.TryGetValue(name, out value) && value.Kind != JsonKind.Null ? value : null;
        }

        /// <summary>Returns the text.</summary>
        /// <exception cref="JsonException">It is no text.</exception>
        public string AsText()
        {
            return (string)Data(JsonKind.Text);
        }

        /// <summary>Returns true or false.</summary>
        /// <exception cref="JsonException">It is neither.</exception>
        public bool AsBoolean()
        {
            return (bool)Data(JsonKind.Boolean);
        }

        /// <summary>Returns the number.</summary>
        /// <exception cref="JsonException">It is no number.</exception>
        public double AsDouble()
        {
            return double.Parse(
                (string)Data(JsonKind.Number), NumberStyles.Float, CultureInfo.InvariantCulture);
        }

        /// <summary>Returns the whole number; 7.0 counts as 7.</summary>
        /// <exception cref="JsonException">It is no number, not whole, or beyond 64 bits.</exception>
        public long AsLong()
        {
            var digits = (string)Data(JsonKind.Number);
            long whole;
            if (long.TryParse(
                digits, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out whole))
            {
                return whole;
            }
            double number = AsDouble();
            // Beyond 2^53 a double no longer holds every whole number.
            if (System.Math.Floor(number) != number || System.Math.Abs(number) > 9007199254740992.0)
            {
                throw new JsonException("a whole number of 64 bits is needed, not " + digits);
            }
            return (long)number;
        }

        /// <summary>Returns the value as JSON, on one line.</summary>
        public override string ToString()
        {
            return JsonWriter.Write(this);
        }

        // The digits are the reader's: it has checked them. A save file that passes through a game keeps
        // every digit this way.
        internal static JsonValue FromDigits(string digits)
        {
            return new JsonValue(JsonKind.Number, digits);
        }

        internal string Digits()
        {
            return (string)Data(JsonKind.Number);
        }

        private object Data(JsonKind kind)
        {
            if (Kind != kind)
            {
                throw new JsonException("a value of kind " + kind + " is needed, not " + Kind);
            }
            return _data;
        }
    }
}
