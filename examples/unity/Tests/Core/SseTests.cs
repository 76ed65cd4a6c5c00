#if !UNITY_5_3_OR_NEWER
using System.Collections.Generic;
using System.Linq;
using System.Text;

namespace PersonaChat.Tests
{
    internal static class SseTests
    {
        private const string Two = "event: generating\ndata: [\"안녕 🙂\"]\n\nevent: complete\ndata: [1]\n\n";
        private const string TwoRead = "generating=[\"안녕 🙂\"];complete=[1]";

        public static void Run()
        {
            Splits();
            Fields();
            Limits();
        }

        private static void Splits()
        {
            foreach (string end in new[] { "\n", "\r\n", "\r" })
            {
                byte[] bytes = Encoding.UTF8.GetBytes(Two.Replace("\n", end));
                int right = Enumerable.Range(0, bytes.Length + 1).Count(at => Read(bytes, at) == TwoRead);
                Check.Equal(bytes.Length + 1, right, "two events, split in two at every byte, line end " + end.Length);
                var parser = new SseParser();
                IEnumerable<SseEvent> single = bytes.SelectMany(unit => parser.Feed(new[] { unit }, 1)).ToList();
                Check.Equal(TwoRead, Shown(single), "two events, a byte at a time, line end " + end.Length);
            }
            var once = new SseParser();
            byte[] first = Encoding.UTF8.GetBytes("data: 1\n\n");
            Check.Equal(1, once.Feed(first, first.Length).Count, "an event is told with its last byte");
        }

        private static void Fields()
        {
            Check.Equal("message=a\nb", Read("data: a\ndata:b\n\n"), "lines of data are joined; one space is dropped");
            Check.Equal("message= a", Read("data:  a\n\n"), "but only one");
            Check.Equal("message=", Read("data\n\n"), "a field may lack its colon");
            Check.Equal("", Read("event: x\n\n: comment\n\n\n"), "without data there is no event");
            Check.Equal("message=2", Read("event: x\n\ndata: 2\n\n"), "and its name does not stay");
            Check.Equal("message=1", Read("id: 7\nretry: 9\nother: x\ndata: 1\n\n"), "other fields are left alone");
            Check.Equal("", Read("data: 1\n"), "an event that is not ended is none");
            Check.Equal("message=1", Read("\uFEFFdata: 1\n\n"), "a mark at the beginning is dropped");
            Check.Equal("message=a:b", Read("data: a:b\n\n"), "only the first colon divides");
        }

        private static void Limits()
        {
            byte[] bad = { (byte)'d', 0xC3, (byte)'\n' };
            var error = Check.Throws<EngineException>(() => new SseParser().Feed(bad, 3), "bytes that are no UTF-8");
            Check.Equal(EngineException.Protocol, error.Code, "have a code");
            var endless = new SseParser();
            var much = new byte[1024 * 1024];
            Check.Throws<EngineException>(
                () => { for (int i = 0; i < 17; i++) { endless.Feed(much, much.Length); } },
                "an endless event is refused");
        }

        private static string Read(string text)
        {
            byte[] bytes = Encoding.UTF8.GetBytes(text);
            return Read(bytes, bytes.Length);
        }

        private static string Read(byte[] bytes, int at)
        {
            var parser = new SseParser();
            // One buffer for both pieces, as a transport has it.
            var buffer = new byte[bytes.Length];
            bytes.Take(at).ToArray().CopyTo(buffer, 0);
            var events = new List<SseEvent>(parser.Feed(buffer, at));
            bytes.Skip(at).ToArray().CopyTo(buffer, 0);
            events.AddRange(parser.Feed(buffer, bytes.Length - at));
            return Shown(events);
        }

        private static string Shown(IEnumerable<SseEvent> events)
        {
            return string.Join(";", events.Select(told => told.Name + "=" + told.Data));
        }
    }
}
#endif
