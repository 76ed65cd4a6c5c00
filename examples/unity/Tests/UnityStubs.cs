// As much of Unity's names as Runtime/Unity uses, so that it compiles without Unity. Signatures are those of
// Unity's scripting reference; nothing here sends, draws or waits, and a run against it proves nothing of Unity.
// Unity itself must never see this file.
#if !UNITY_5_3_OR_NEWER
using System;
using System.Collections;
using System.Collections.Generic;

namespace UnityEngine
{
    public class Object
    {
    }

    public class Component : Object
    {
    }

    public class Behaviour : Component
    {
    }

    public sealed class Coroutine
    {
    }

    public class MonoBehaviour : Behaviour
    {
        // Unity goes on with it a step each frame; here it runs to its end.
        public Coroutine StartCoroutine(IEnumerator routine)
        {
            while (routine.MoveNext())
            {
                System.Threading.Thread.Sleep(1);
            }
            return new Coroutine();
        }
    }

    [AttributeUsage(AttributeTargets.Field)]
    public sealed class TooltipAttribute : Attribute
    {
        public TooltipAttribute(string tooltip)
        {
        }
    }

    public static class Debug
    {
        public static readonly List<Exception> Logged = new List<Exception>();

        public static void LogException(Exception exception)
        {
            Logged.Add(exception);
        }
    }
}

namespace UnityEngine.Events
{
    public delegate void UnityAction<T0>(T0 arg0);

    public class UnityEvent<T0>
    {
        private readonly List<UnityAction<T0>> _listeners = new List<UnityAction<T0>>();

        public void AddListener(UnityAction<T0> call)
        {
            _listeners.Add(call);
        }

        public void Invoke(T0 arg0)
        {
            foreach (UnityAction<T0> listener in _listeners)
            {
                listener(arg0);
            }
        }
    }
}

namespace UnityEngine.Networking
{
    public class UnityWebRequest : IDisposable
    {
        public const string kHttpVerbGET = "GET";
        public const string kHttpVerbPOST = "POST";

        public UnityWebRequest(string url, string method)
        {
            this.url = url;
        }

        public enum Result
        {
            InProgress,
            Success,
            ConnectionError,
            ProtocolError,
            DataProcessingError,
        }

        public string url { get; set; }

        public UploadHandler uploadHandler { get; set; }

        public DownloadHandler downloadHandler { get; set; }

        public bool isDone => true;

        public Result result => Result.ConnectionError;

        public string error => "this is a stub";

        public long responseCode => 0;

        public void SetRequestHeader(string name, string value)
        {
        }

        public UnityWebRequestAsyncOperation SendWebRequest()
        {
            return new UnityWebRequestAsyncOperation();
        }

        public void Abort()
        {
        }

        public void Dispose()
        {
        }
    }

    public class UnityWebRequestAsyncOperation
    {
    }

    public class UploadHandler
    {
    }

    public sealed class UploadHandlerRaw : UploadHandler
    {
        public UploadHandlerRaw(byte[] data)
        {
        }
    }

    public class DownloadHandler
    {
        public string text => "";

        protected virtual bool ReceiveData(byte[] data, int dataLength)
        {
            return true;
        }
    }

    public sealed class DownloadHandlerBuffer : DownloadHandler
    {
    }

    public class DownloadHandlerScript : DownloadHandler
    {
        public DownloadHandlerScript()
        {
        }

        public DownloadHandlerScript(byte[] preallocatedBuffer)
        {
        }
    }
}
#endif
