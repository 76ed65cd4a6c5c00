using System.Collections.Generic;
using System.Globalization;
using System.Text;

namespace PersonaChat
{
    /// <summary>
    /// Reads JSON (RFC 8259) strictly: no comments, no commas at the end, no name twice, no half of a
    /// surrogate pair, no number that a double cannot hold.
    /// </summary>
    public sealed class JsonReader
    {
        /// <summary>How many arrays and objects may lie within each other; more could exhaust the stack.</summary>
        public const int MaxDepth = 64;

        private readonly string _text;
        private int _at;

        private JsonReader(string text)
        {
            _text = text;
        }

        /// <summary>Reads one value.</summary>
        /// <param name="json">One JSON value and nothing else but white space.</param>
        /// <exception cref="JsonException">It is no JSON; the error says where.</exception>
        public static JsonValue Read(string json)
        {
            if (json == null)
            {
                throw new JsonException("there is no text");
            }
            var reader = new JsonReader(json);
            reader.SkipSpace();
            JsonValue value = reader.ReadValue(0);
            if (reader._at < json.Length)
            {
                throw reader.Wrong("nothing may follow the value");
            }
            return value;
        }

        // Every Read… begins at its first character and ends behind the white space after its last.
        private JsonValue ReadValue(int depth)
        {
            switch (Peek())
            {
                case '{':
                    return ReadObject(depth + 1);
                case '[':
                    return ReadArray(depth + 1);
                case '"':
                    return JsonValue.From(ReadText());
                case 't':
                    return ReadWord("true", JsonValue.From(true));
                case 'f':
                    return ReadWord("false", JsonValue.From(false));
                case 'n':
                    return ReadWord("null", JsonValue.Null);
                default:
                    return ReadNumber();
            }
        }

        private JsonValue ReadObject(int depth)
        {
            Enter(depth);
            var members = new Dictionary<string, JsonValue>();
            while (!Ends('}', members.Count))
            {
                int start = _at;
                string name = ReadText();
                if (members.ContainsKey(name))
                {
                    throw new JsonException("the name '" + name + "' stands here twice", start);
                }
                Take(':', "a colon is needed");
                members.Add(name, ReadValue(depth));
            }
            return JsonValue.From(members);
        }

        private JsonValue ReadArray(int depth)
        {
            Enter(depth);
            var items = new List<JsonValue>();
            while (!Ends(']', items.Count))
            {
                items.Add(ReadValue(depth));
            }
            return JsonValue.From(items);
        }

        private void Enter(int depth)
        {
            if (depth > MaxDepth)
            {
                throw Wrong("more than " + MaxDepth + " arrays and objects lie within each other");
            }
            _at++;
            SkipSpace();
        }

        // Takes the closing bracket, or the comma between two values.
        private bool Ends(char bracket, int count)
        {
            if (Peek() == bracket)
            {
                _at++;
                SkipSpace();
                return true;
            }
            if (count > 0)
            {
                Take(',', "a comma or '" + bracket + "' is needed");
            }
            return false;
        }

        private string ReadText()
        {
            if (Peek() != '"')
            {
                throw Wrong("a quotation mark is needed");
            }
            _at++;
            var text = new StringBuilder();
            while (true)
            {
                char unit = Next();
                if (unit == '"')
                {
                    break;
                }
                if (unit < ' ')
                {
                    _at--;
                    throw Wrong("a control character must be escaped");
                }
                text.Append(unit == '\\' ? ReadEscape() : unit);
            }
            CheckPairs(text);
            SkipSpace();
            return text.ToString();
        }

        private char ReadEscape()
        {
            char letter = Next();
            switch (letter)
            {
                case '"':
                case '\\':
                case '/':
                    return letter;
                case 'b':
                    return '\b';
                case 'f':
                    return '\f';
                case 'n':
                    return '\n';
                case 'r':
                    return '\r';
                case 't':
                    return '\t';
                case 'u':
                    return ReadUnit();
                default:
                    _at--;
                    throw Wrong("there is no such escape");
            }
        }

        private char ReadUnit()
        {
            int unit = 0;
            for (int digits = 0; digits < 4; digits++)
            {
                char digit = Next();
                int value = "0123456789abcdef".IndexOf(char.ToLowerInvariant(digit));
                if (value < 0)
                {
                    _at--;
                    throw Wrong("four hexadecimal digits are needed");
                }
                unit = unit * 16 + value;
            }
            return (char)unit;
        }

        // Half of a pair is no character: it could be neither drawn nor sent on.
        private void CheckPairs(StringBuilder text)
        {
            for (int i = 0; i < text.Length; i++)
            {
                if (char.IsHighSurrogate(text[i]) && i + 1 < text.Length && char.IsLowSurrogate(text[i + 1]))
                {
                    i++;
                }
                else if (char.IsSurrogate(text[i]))
                {
                    throw Wrong("the text before this holds half of a surrogate pair");
                }
            }
        }

        private JsonValue ReadNumber()
        {
            int start = _at;
            Skip('-');
            int whole = _at;
            if (SkipDigits("a value is needed") > 1 && _text[whole] == '0')
            {
                throw new JsonException("a number may not begin with 0", whole);
            }
            if (Skip('.'))
            {
                SkipDigits("a digit is needed");
            }
            if (Skip('e') || Skip('E'))
            {
                if (!Skip('+'))
                {
                    Skip('-');
                }
                SkipDigits("a digit is needed");
            }
            string digits = _text.Substring(start, _at - start);
            double number;
            // Where it is too large, some runtimes say no and the others give infinity.
            if (!double.TryParse(digits, NumberStyles.Float, CultureInfo.InvariantCulture, out number)
                || double.IsInfinity(number))
            {
                throw new JsonException("the number is too large", start);
            }
            SkipSpace();
            return JsonValue.FromDigits(digits);
        }

        private int SkipDigits(string needed)
        {
            int start = _at;
            // Not char.IsDigit, which takes the digits of every script.
            while (_at < _text.Length && _text[_at] >= '0' && _text[_at] <= '9')
            {
                _at++;
            }
            if (_at == start)
            {
                throw Wrong(needed);
            }
            return _at - start;
        }

        private JsonValue ReadWord(string word, JsonValue value)
        {
            if (string.CompareOrdinal(_text, _at, word, 0, word.Length) != 0)
            {
                throw Wrong("a value is needed");
            }
            _at += word.Length;
            SkipSpace();
            return value;
        }

        private void Take(char wanted, string needed)
        {
            if (Peek() != wanted)
            {
                throw Wrong(needed);
            }
            _at++;
            SkipSpace();
        }

        private bool Skip(char wanted)
        {
            if (_at < _text.Length && _text[_at] == wanted)
            {
                _at++;
                return true;
            }
            return false;
        }

        private void SkipSpace()
        {
            while (_at < _text.Length && " \t\r\n".IndexOf(_text[_at]) >= 0)
            {
                _at++;
            }
        }

        private char Peek()
        {
            if (_at >= _text.Length)
            {
                throw Wrong("the text ends too early");
            }
            return _text[_at];
        }

        private char Next()
        {
            char unit = Peek();
            _at++;
            return unit;
        }

        private JsonException Wrong(string message)
        {
            return new JsonException(message, _at);
        }
    }
}
