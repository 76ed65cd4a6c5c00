using System;
using System.Collections.Generic;
using System.IO;
using System.Text;

namespace PersonaChat
{
    /// <summary>One server-sent event.</summary>
    public sealed class SseEvent
    {
        /// <summary>Makes an event.</summary>
        /// <param name="name">Its name.</param>
        /// <param name="data">Its data.</param>
        public SseEvent(string name, string data)
        {
            Name = name;
            Data = data;
        }

        /// <summary>What follows "event:"; "message" where nothing does.</summary>
        public string Name { get; }

        /// <summary>What follows "data:", its lines joined by line feeds.</summary>
        public string Data { get; }
    }

    /// <summary>
    /// Makes events out of bytes that come in pieces of any size (WHATWG HTML, "Server-sent events"). Bytes are
    /// decoded a line at a time: no part of a UTF-8 character looks like a line's end, so a character that two
    /// pieces share is whole again by then. "id" and "retry" are left alone: a stream is never resumed, a turn
    /// is asked for again.
    /// </summary>
    public sealed class SseParser
    {
        /// <summary>How many bytes an event may have; more is no answer of this engine.</summary>
        public const int MaxEventBytes = 16 * 1024 * 1024;

        private static readonly UTF8Encoding Utf8 = new UTF8Encoding(false, throwOnInvalidBytes: true);

        private readonly MemoryStream _line = new MemoryStream();
        private readonly List<string> _data = new List<string>();
        private string _name = "";
        private int _eventBytes;
        private bool _afterReturn;
        private bool _begun;

        /// <summary>Takes bytes and returns the events that they complete, which may be none.</summary>
        /// <param name="bytes">A buffer, which may be used again after the call.</param>
        /// <param name="count">How many of its bytes, from the first, are meant.</param>
        /// <exception cref="EngineException">They are no UTF-8, or make an event that is too long.</exception>
        public IList<SseEvent> Feed(byte[] bytes, int count)
        {
            var events = new List<SseEvent>();
            int start = 0;
            for (int i = 0; i < count; i++)
            {
                byte unit = bytes[i];
                bool secondOfPair = unit == '\n' && _afterReturn;
                _afterReturn = unit == '\r';
                if (unit != '\n' && unit != '\r')
                {
                    continue;
                }
                if (!secondOfPair)
                {
                    Keep(bytes, start, i - start);
                    EndLine(events);
                }
                start = i + 1;
            }
            Keep(bytes, start, count - start);
            return events;
        }

        private void Keep(byte[] bytes, int start, int count)
        {
            _eventBytes += count;
            if (_eventBytes > MaxEventBytes)
            {
                throw new EngineException(
                    EngineException.Protocol, "an event is longer than " + MaxEventBytes + " bytes", false);
            }
            _line.Write(bytes, start, count);
        }

        private void EndLine(List<SseEvent> events)
        {
            string line = Decoded();
            _line.SetLength(0);
            if (!_begun)
            {
                _begun = true;
                line = line.TrimStart('\uFEFF');
            }
            if (line.Length > 0)
            {
                Read(line);
                return;
            }
            if (_data.Count > 0)
            {
                events.Add(new SseEvent(_name.Length > 0 ? _name : "message", string.Join("\n", _data)));
            }
            _data.Clear();
            _name = "";
            _eventBytes = 0;
        }

        private string Decoded()
        {
            try
            {
                return Utf8.GetString(_line.GetBuffer(), 0, (int)_line.Length);
            }
            catch (ArgumentException error)
            {
                throw new EngineException(
                    EngineException.Protocol, "the stream is no UTF-8", false, null, error);
            }
        }

        private void Read(string line)
        {
            int colon = line.IndexOf(':');
            string field = colon < 0 ? line : line.Substring(0, colon);
            string value = colon < 0 ? "" : line.Substring(colon + 1);
            if (value.StartsWith(" ", StringComparison.Ordinal))
            {
                value = value.Substring(1);
            }
            if (field == "data")
            {
                _data.Add(value);
            }
            else if (field == "event")
            {
                _name = value;
            }
        }
    }
}
