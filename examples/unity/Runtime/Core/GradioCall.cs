using System;
using System.Threading;
using System.Threading.Tasks;

namespace PersonaChat
{
    // One call over Gradio's HTTP protocol: the arguments are posted and answered by an event's id; the event's
    // stream then brings "generating" for each thing on the way and "complete" with the answer. "heartbeat"
    // only keeps the line open.
    internal sealed class GradioCall
    {
        private readonly SseParser _parser = new SseParser();
        private readonly Action<JsonValue> _onGenerating;
        private JsonValue _answer;

        private GradioCall(Action<JsonValue> onGenerating)
        {
            _onGenerating = onGenerating;
        }

        // Returns the answer; throws EngineException, also for an {"error": …}.
        public static async Task<JsonValue> RunAsync(
            ITransport transport,
            string serverUrl,
            string name,
            JsonValue arguments,
            Action<JsonValue> onGenerating,
            CancellationToken cancel)
        {
            string calls = serverUrl + "/gradio_api/call/";
            HttpReply reply = await transport.PostAsync(calls + "v2/" + name, arguments.ToString(), cancel);
            string address = calls + name + "/" + Uri.EscapeDataString(EventId(reply));
            var call = new GradioCall(onGenerating);
            int status = await transport.GetAsync(address, call.OnBytes, cancel);
            if (status != 200)
            {
                throw Refused(status);
            }
            if (call._answer == null)
            {
                throw new EngineException(
                    EngineException.Unreachable, "the stream ended before the answer was whole", true);
            }
            return call._answer;
        }

        private static string EventId(HttpReply reply)
        {
            JsonValue answer;
            try
            {
                answer = JsonReader.Read(reply.Body);
            }
            catch (JsonException) when (reply.Status != 200)
            {
                throw Refused(reply.Status); // a proxy's page, say; the status tells more than its text
            }
            ThrowIfError(answer);
            if (reply.Status != 200)
            {
                throw Refused(reply.Status);
            }
            return answer["event_id"].AsText();
        }

        private static EngineException Refused(int status)
        {
            // What a server or a proxy says when it is overloaded or being restarted; others will not change.
            bool passing = status >= 500 || status == 429 || status == 408;
            return new EngineException(
                passing ? EngineException.Unreachable : EngineException.Protocol,
                "the server answered with the HTTP status " + status,
                passing);
        }

        private static void ThrowIfError(JsonValue answer)
        {
            EngineException error = EngineException.FromAnswer(answer);
            if (error != null)
            {
                throw error;
            }
        }

        private void OnBytes(byte[] bytes, int count)
        {
            foreach (SseEvent told in _parser.Feed(bytes, count))
            {
                OnEvent(told);
            }
        }

        private void OnEvent(SseEvent told)
        {
            switch (told.Name)
            {
                case "generating":
                    JsonValue value = First(told.Data);
                    // The error comes once more as the answer, and is thrown there.
                    if (_onGenerating != null && EngineException.FromAnswer(value) == null)
                    {
                        _onGenerating(value);
                    }
                    break;
                case "complete":
                    JsonValue answer = First(told.Data);
                    ThrowIfError(answer);
                    _answer = answer;
                    break;
                case "error":
                    // Gradio's own, not the engine's: it knows no such event, for it was started anew since.
                    throw new EngineException(
                        EngineException.Unreachable, "the server lost the call: " + told.Data, true);
            }
        }

        private static JsonValue First(string data)
        {
            JsonValue values = JsonReader.Read(data);
            if (values.Items.Count == 0)
            {
                throw new EngineException(EngineException.Protocol, "an event came without a value", false);
            }
            return values.Items[0];
        }
    }
}
