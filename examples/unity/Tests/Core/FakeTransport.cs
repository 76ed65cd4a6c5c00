#if !UNITY_5_3_OR_NEWER
using System;
using System.Collections.Generic;
using System.Text;
using System.Threading;
using System.Threading.Tasks;

namespace PersonaChat.Tests
{
    // Answers each call with the next script; nothing is sent and nothing waits.
    internal sealed class FakeTransport : ITransport
    {
        public const string Posted = "{\"event_id\": \"e/1\"}";

        private readonly Queue<Script> _scripts = new Queue<Script>();
        private Script _now;

        public List<string> Bodies { get; } = new List<string>();

        public List<string> Urls { get; } = new List<string>();

        public List<int> DelaysMs { get; } = new List<int>();

        // What happens within the post, before its answer.
        public Action OnPost { get; set; }

        public static string Event(string name, string value)
        {
            return "event: " + name + "\ndata: [" + value + "]\n\n";
        }

        // The post is answered like that; the stream then is `stream`, a byte at a time, or null: the line breaks.
        public FakeTransport Then(string stream, int status = 200, string post = Posted, int streamStatus = 200)
        {
            _scripts.Enqueue(
                new Script { Stream = stream, Status = status, Post = post, StreamStatus = streamStatus });
            return this;
        }

        public Task<HttpReply> PostAsync(string url, string json, CancellationToken cancel)
        {
            cancel.ThrowIfCancellationRequested();
            Urls.Add(url);
            Bodies.Add(json);
            _now = _scripts.Dequeue();
            if (OnPost != null)
            {
                OnPost();
            }
            return Task.FromResult(new HttpReply(_now.Status, _now.Post));
        }

        public Task<int> GetAsync(string url, Action<byte[], int> onBytes, CancellationToken cancel)
        {
            cancel.ThrowIfCancellationRequested();
            Urls.Add(url);
            if (_now.Stream == null)
            {
                throw new EngineException(EngineException.Unreachable, "the line broke", true);
            }
            var buffer = new byte[1];
            foreach (byte unit in Encoding.UTF8.GetBytes(_now.Stream))
            {
                buffer[0] = unit;
                onBytes(buffer, 1);
            }
            return Task.FromResult(_now.StreamStatus);
        }

        public Task DelayAsync(int milliseconds, CancellationToken cancel)
        {
            cancel.ThrowIfCancellationRequested();
            DelaysMs.Add(milliseconds);
            return Task.FromResult(true);
        }

        private sealed class Script
        {
            public string Stream;
            public int Status;
            public string Post;
            public int StreamStatus;
        }
    }
}
#endif
