using System.Collections.Generic;

namespace PersonaChat
{
    // The members of an object that is being written; what is null is left out.
    internal sealed class Members
    {
        private readonly Dictionary<string, JsonValue> _members = new Dictionary<string, JsonValue>();

        public Members Add(string name, JsonValue value)
        {
            if (value != null)
            {
                _members.Add(name, value);
            }
            return this;
        }

        public Members Add(string name, string value)
        {
            return Add(name, value == null ? null : JsonValue.From(value));
        }

        public Members Add(string name, double? value)
        {
            return Add(name, value.HasValue ? JsonValue.From(value.Value) : null);
        }

        public Members Add(string name, long? value)
        {
            return Add(name, value.HasValue ? JsonValue.From(value.Value) : null);
        }

        public JsonValue ToJson()
        {
            return JsonValue.From(_members);
        }
    }
}
