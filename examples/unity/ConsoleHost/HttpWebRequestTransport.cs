// Unity has a transport of its own; this file is for Mono and the .NET Framework.
#if !UNITY_5_3_OR_NEWER
using System;
using System.IO;
using System.Net;
using System.Text;
using System.Threading;
using System.Threading.Tasks;

namespace PersonaChat.ConsoleHost
{
    /// <summary>
    /// Sends by HttpWebRequest, which hands a stream on while it comes and is part of every .NET Framework. Each
    /// request blocks a thread of the pool: its time limits hold for blocking calls alone.
    /// </summary>
    public sealed class HttpWebRequestTransport : ITransport
    {
        private readonly int _silenceMs;

        /// <summary>Makes a transport.</summary>
        /// <param name="silenceMs">
        /// Milliseconds without a byte after which a line counts as broken. The server sends a sign of life every
        /// 15 seconds.
        /// </param>
        public HttpWebRequestTransport(int silenceMs = 40000)
        {
            _silenceMs = silenceMs;
        }

        /// <inheritdoc/>
        public Task<HttpReply> PostAsync(string url, string json, CancellationToken cancel)
        {
            return RunAsync(
                url,
                cancel,
                request =>
                {
                    byte[] body = Encoding.UTF8.GetBytes(json);
                    request.Method = "POST";
                    request.ContentType = "application/json";
                    request.ContentLength = body.Length;
                    using (Stream stream = request.GetRequestStream())
                    {
                        stream.Write(body, 0, body.Length);
                    }
                    using (HttpWebResponse response = Response(request))
                    using (var reader = new StreamReader(response.GetResponseStream(), Encoding.UTF8))
                    {
                        return new HttpReply((int)response.StatusCode, reader.ReadToEnd());
                    }
                });
        }

        /// <inheritdoc/>
        public Task<int> GetAsync(string url, Action<byte[], int> onBytes, CancellationToken cancel)
        {
            return RunAsync(
                url,
                cancel,
                request =>
                {
                    request.Accept = "text/event-stream";
                    using (HttpWebResponse response = Response(request))
                    {
                        if (response.StatusCode == HttpStatusCode.OK)
                        {
                            HandOn(response.GetResponseStream(), onBytes);
                        }
                        return (int)response.StatusCode;
                    }
                });
        }

        /// <inheritdoc/>
        public Task DelayAsync(int milliseconds, CancellationToken cancel)
        {
            return Task.Delay(milliseconds, cancel);
        }

        private static void HandOn(Stream stream, Action<byte[], int> onBytes)
        {
            var buffer = new byte[16 * 1024];
            int count;
            while ((count = stream.Read(buffer, 0, buffer.Length)) > 0)
            {
                onBytes(buffer, count);
            }
        }

        // HttpWebRequest throws for a status of 400 or more; here that is an answer.
        private static HttpWebResponse Response(HttpWebRequest request)
        {
            try
            {
                return (HttpWebResponse)request.GetResponse();
            }
            catch (WebException error) when (error.Response is HttpWebResponse)
            {
                return (HttpWebResponse)error.Response;
            }
        }

        private Task<T> RunAsync<T>(string url, CancellationToken cancel, Func<HttpWebRequest, T> send)
        {
            return Task.Run(() => Run(url, cancel, send), cancel);
        }

        private T Run<T>(string url, CancellationToken cancel, Func<HttpWebRequest, T> send)
        {
            try
            {
                var request = (HttpWebRequest)WebRequest.Create(url);
                request.Timeout = _silenceMs;
                request.ReadWriteTimeout = _silenceMs;
                using (cancel.Register(request.Abort))
                {
                    return send(request);
                }
            }
            catch (Exception error) when (error is WebException || error is IOException)
            {
                cancel.ThrowIfCancellationRequested();
                throw new EngineException(
                    EngineException.Unreachable,
                    "no engine answers at " + url + ": " + error.Message,
                    true,
                    null,
                    error);
            }
            catch (UriFormatException error)
            {
                throw new EngineException(
                    EngineException.InvalidRequest, url + " is no address", false, "server_url", error);
            }
        }
    }
}
#endif
