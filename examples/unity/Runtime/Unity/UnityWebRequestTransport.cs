using System;
using System.Diagnostics;
using System.Runtime.ExceptionServices;
using System.Text;
using System.Threading;
using System.Threading.Tasks;
using UnityEngine.Networking;

namespace PersonaChat.Unity
{
    /// <summary>
    /// Sends by UnityWebRequest. To be used on the main thread: it waits a frame at a time (Task.Yield goes on in
    /// the next frame there), and so needs neither a game object nor a second thread, which web builds lack.
    /// </summary>
    public sealed class UnityWebRequestTransport : ITransport
    {
        private readonly double _silenceSeconds;

        /// <summary>Makes a transport.</summary>
        /// <param name="silenceSeconds">
        /// Seconds without a byte after which a line counts as broken. The server sends a sign of life every 15.
        /// </param>
        public UnityWebRequestTransport(double silenceSeconds = 40.0)
        {
            _silenceSeconds = silenceSeconds;
        }

        /// <inheritdoc/>
        public async Task<HttpReply> PostAsync(string url, string json, CancellationToken cancel)
        {
            using (var request = new UnityWebRequest(url, UnityWebRequest.kHttpVerbPOST))
            {
                request.uploadHandler = new UploadHandlerRaw(Encoding.UTF8.GetBytes(json));
                request.downloadHandler = new DownloadHandlerBuffer();
                request.SetRequestHeader("Content-Type", "application/json");
                await SendAsync(request, null, cancel);
                return new HttpReply((int)request.responseCode, request.downloadHandler.text ?? "");
            }
        }

        /// <inheritdoc/>
        public async Task<int> GetAsync(string url, Action<byte[], int> onBytes, CancellationToken cancel)
        {
            using (var request = new UnityWebRequest(url, UnityWebRequest.kHttpVerbGET))
            {
                var handler = new StreamHandler(request, onBytes);
                request.downloadHandler = handler;
                request.SetRequestHeader("Accept", "text/event-stream");
                await SendAsync(request, handler, cancel);
                return (int)request.responseCode;
            }
        }

        /// <inheritdoc/>
        public async Task DelayAsync(int milliseconds, CancellationToken cancel)
        {
            // Not Time.time, which stands still in a game that is paused.
            Stopwatch waited = Stopwatch.StartNew();
            while (waited.ElapsedMilliseconds < milliseconds)
            {
                cancel.ThrowIfCancellationRequested();
                await Task.Yield();
            }
        }

        private async Task SendAsync(UnityWebRequest request, StreamHandler handler, CancellationToken cancel)
        {
            cancel.ThrowIfCancellationRequested();
            try
            {
                request.SendWebRequest();
            }
            catch (InvalidOperationException error)
            {
                // Unity 2022 and newer refuse plain http where the player settings do not allow it.
                throw new EngineException(
                    EngineException.Unreachable, error.Message, false, "server_url", error);
            }
            await FinishAsync(request, handler, cancel);
            if (handler != null && handler.Failure != null)
            {
                handler.Failure.Throw();
            }
            // A status of 400 or more is a ProtocolError in Unity's words, and an answer in ours.
            if (request.result != UnityWebRequest.Result.Success
                && request.result != UnityWebRequest.Result.ProtocolError)
            {
                throw Unreachable(request.url + ": " + request.error);
            }
        }

        private async Task FinishAsync(UnityWebRequest request, StreamHandler handler, CancellationToken cancel)
        {
            Stopwatch silence = Stopwatch.StartNew();
            long seen = 0;
            while (!request.isDone)
            {
                if (cancel.IsCancellationRequested)
                {
                    request.Abort();
                    cancel.ThrowIfCancellationRequested();
                }
                if (handler != null && handler.ReceivedBytes != seen)
                {
                    seen = handler.ReceivedBytes;
                    silence.Restart();
                }
                if (silence.Elapsed.TotalSeconds > _silenceSeconds)
                {
                    request.Abort();
                    throw Unreachable(request.url + " was silent for " + _silenceSeconds + " seconds");
                }
                await Task.Yield();
            }
        }

        private static EngineException Unreachable(string message)
        {
            return new EngineException(EngineException.Unreachable, message, true);
        }

        // DownloadHandlerBuffer gives a body when it is whole; this one hands each piece on.
        private sealed class StreamHandler : DownloadHandlerScript
        {
            private readonly UnityWebRequest _request;
            private readonly Action<byte[], int> _onBytes;

            public StreamHandler(UnityWebRequest request, Action<byte[], int> onBytes)
                : base(new byte[16 * 1024])
            {
                _request = request;
                _onBytes = onBytes;
            }

            public long ReceivedBytes { get; private set; }

            // What onBytes threw. Unity would write it to the console and lose it.
            public ExceptionDispatchInfo Failure { get; private set; }

            // Returning false ends the request.
            protected override bool ReceiveData(byte[] data, int dataLength)
            {
                if (data == null || Failure != null)
                {
                    return false;
                }
                ReceivedBytes += dataLength;
                if (_request.responseCode >= 300)
                {
                    return true; // the page of an error; the status will tell
                }
                try
                {
                    _onBytes(data, dataLength);
                    return true;
                }
                catch (Exception error)
                {
                    Failure = ExceptionDispatchInfo.Capture(error);
                    return false;
                }
            }
        }
    }
}
